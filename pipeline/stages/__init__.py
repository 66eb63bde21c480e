"""The method as stages of a run. This is the one room of the engine that knows diffusion, directions and metrics.

In reading order:

- `settings`: the settings of a run, which are data, and the stages that it declares with them
- `models`: fetches models, directions and nets from any URL, once per machine
- `editor`: inverts and edits images with a frozen net
- `preparation`: finds how many images suit a device, and compiles the net for them
- `inspection`: measures images, holds them against gates, searches strengths
- `functions`: the batch function of every stage
- `loading`: loads the functions on an actor
- `statistics`, `readings`, `reducers`: the stage that reads something of images and adds it up
- `evaluation`: the stage that measures finished images
"""
