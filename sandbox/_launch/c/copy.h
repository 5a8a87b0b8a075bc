// copy.h: copying a tree of files into another file system.
#ifndef COPY_H
#define COPY_H

// Copies what is in the directory `from` (any descriptor of it) into the directory `to`; what `to` has already stays, and
// directories of both are joined. What is mounted below `from` is left out, devices and sockets are too. Owners are kept where
// the user namespace has them. How much there is, the file system of `to` limits. Returns 0, or -1 with errno.
int copy_tree(int from, int to);

#endif
