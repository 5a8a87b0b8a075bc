"""Files of a live container, from outside.

Theory of operation
-------------------
Paths inside are the attacker's, and so is what lies there. Every path is resolved by init, inside the container's root and
without magic links, so that nothing planted there leads the host astray. Writing is done by init too: its ids are the
container's, and no descriptor that is open for writing ever exists outside, so a program just written is never "busy".
A tree is written below a descriptor of its target: whatever a program exchanges meanwhile, nothing beside it is touched.

Reading happens here, on descriptors that init opened or that were opened below those, name by name, without following
links (`walk`). Where the caller's own rights are not enough, init opens for him. All of it is bounded (`limits`).
"""
