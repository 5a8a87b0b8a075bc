// held.h: namespaces of a container that has ended, whose own end nobody waits for.
#ifndef SANDBOX_HELD_H
#define SANDBOX_HELD_H

#include <stdbool.h>

enum { HELD = 2 };

struct held {
    int fds[HELD]; // of nsfs; -1: none
    char *left;    // the file that tells how many bytes the container's group still has; NULL: nothing is held
};

#define HELD_NOTHING ((struct held){.fds = {-1, -1}, .left = NULL})

// Holds those of process `pid`, as far as this process may; on failure nothing is held.
void held_take(struct held *h, int pid, const char *left);
// Before anybody is told that the container has gone: lets go at once of what holds much memory.
void held_weigh(struct held *h);
// Lets go, later: when `held_let_go` is called, or many wait.
void held_release(struct held *h);
bool held_waits(void);
// Lets go of all that wait, in another process.
void held_let_go(void);
// No more will come; the other process ends when it has let go of everything.
void held_end(void);

#endif
