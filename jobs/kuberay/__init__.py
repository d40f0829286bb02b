"""A job on Kubernetes: the objects that `jointdit submit --kube` prints or sends, as typed models.

objects.py     the Kubernetes objects, with the fields that are used here
ray_job.py     KubeRay's RayJob, from its API reference
stores.py      environment, secrets and egress for each kind of store
pods.py        images, containers and pods: driver and head, GPU workers, submitter
network.py     network policies
manifests.py   all objects of a job, in the order of creation: read it first
yaml_text.py   readable YAML
cluster_api.py sends them to the cluster's API server; the CronJob's pod runs it too
"""
