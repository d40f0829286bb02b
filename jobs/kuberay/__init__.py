"""A job on Kubernetes: the objects that `jointdit submit --kube` prints or sends, as typed models.

objects.py     the Kubernetes objects, with the fields that are used here
ray_job.py     KubeRay's RayJob, from its API reference
stores.py      what each kind of store needs: environment, secrets, ways out
pods.py        images, containers and pods: driver and head, GPU workers, submitter
network.py     who may talk to whom
manifests.py   all objects of a job, in the order in which they are made: read it first
yaml_text.py   YAML for people
cluster_api.py sends them to the cluster's API server; the CronJob's pod runs it too
"""
