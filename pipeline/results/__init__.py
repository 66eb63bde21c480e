"""The results of a run, read from its storage for people.

rows        the rows of a run as columns, with the metrics of the run and of its evaluations
summaries   adds up rows and heartbeats
highlights  chooses the rows that are worth a picture
thumbnails  small pictures of rows, before and after their edit
sheet       the contact sheet of a run
"""
