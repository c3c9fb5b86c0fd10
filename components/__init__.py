"""The contract with Kubeflow Pipelines: one typed step of a pipeline a file.

Only a component's own source travels to the cluster, so `trainer` is imported in its body,
and nothing of the module around it may be used there.
"""

import functools
from importlib import metadata

from kfp import dsl

# The local runner takes an image to be one for Python by its name alone.
IMAGE = f"ghcr.io/kfp-vision/kfp-vision-python:{metadata.version('kfp-vision')}"

component = functools.partial(dsl.component, base_image=IMAGE, install_kfp_package=False)
