"""Hands runs and data jobs to other systems: clusters that run them, and schedulers that start them.

placement            the resources that a job asks for, and the command and spec that it carries
kubernetes           a run as a RayJob of KubeRay; the parts of manifests that all jobs on Kubernetes share
slurm                a run or a tick as a script for `sbatch`
job_file             the file of a data job whose schedule is rendered, and the templates
cron_dialects        cron expressions as other schedulers read them
kubernetes_schedule  the schedule of a data job as a CronJob or a RayCronJob
host                 the schedule of a data job for systemd, cron and Slurm's scrontab
airflow              the schedule of a data job as an Airflow DAG
render               the targets of `asyrp jobs schedule render`
cluster_file         checks a cluster file for `ray up`
clusters/            a cluster file for machines that are reached by ssh
templates/           the texts that are rendered, and a dashboard for Grafana
"""
