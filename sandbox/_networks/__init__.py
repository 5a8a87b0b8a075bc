"""What a container has to do with networks, behind `sandbox.Network` and the face of `sandbox.Container`.

wishes: what the caller asks for, checked. membership: a running container's places in networks. switch: where a network lives.
The messages for the kernel are made in `sandbox.net`.
"""
