// tree.h: removes a tree of the container, in pieces.
#ifndef SANDBOX_TREE_H
#define SANDBOX_TREE_H

#include <stdbool.h>

// Removes `name` from the directory `parent`: a file, a link, an empty directory; with `recursive`, all that is in it as well.
// Returns 0, or -1 with errno; EAGAIN: there was more to do than is done at once, call it again.
int tree_remove(int parent, const char *name, bool recursive);

#endif
