// wire.h: the numbers of wire.md, and a bounded reader and writer for its bytes.
//
// The reader never reads past its end: the first malformed field sets `bad`, and every later read returns zero,
// so that a parser may read a whole structure and test `bad` once. Strings carry their NUL and are used in place.
#ifndef SANDBOX_WIRE_H
#define SANDBOX_WIRE_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

enum { WIRE_INLINE = 65536, WIRE_FDS = 250, WIRE_MAX = 16 << 20, SLOTS = 256, NO_SLOT = 0xFFFF, OWN_NULL = 0xFFFE };
enum { HEAD_MEMFD = 1 };
enum { // Python -> launcher, Python -> init
    MSG_CREATE = 1,
    MSG_EXEC = 2,
    MSG_KILL = 3,
    MSG_CHANNEL = 4,
    MSG_OPS = 5,
    MSG_SIGNAL_ALL = 6,
    MSG_CLEANUP = 7,
    MSG_COMPLETE = 8,
    MSG_GROUPS = 9,
    MSG_FINISH = 10,
    MSG_RESET = 11,
};
enum { // launcher or init -> Python
    MSG_CLONED = 64,
    MSG_GONE = 65,
    MSG_FAILED = 66,
    MSG_READY = 67,
    MSG_STARTED = 68,
    MSG_END = 69,
    MSG_DONE = 70,
    MSG_OPENED = 71,
};
enum { PHASE_CLONE = 1, PHASE_MAPS = 2, PHASE_HOST = 3, PHASE_INIT = 4, PHASE_EXEC = 5, PHASE_REQUEST = 6, PHASE_GROUPS = 7 };
enum {
    CREATE_ONESHOT = 1,
    CREATE_DENY_SETGROUPS = 2,
    CREATE_DIRECT = 4,
    CREATE_MAP_HELPERS = 8,
    CREATE_PREPARED = 16,
    CREATE_CAN_WAIT = 32
};
enum { GROUP_MAKE = 0, GROUP_WRITE = 1, GROUP_REMOVE = 2, GROUP_READ = 3, GROUP_JOIN = 4, GROUP_GIVE = 5, GROUP_OWN = 6 };
enum { EXEC_REPORT_START = 1, EXEC_TTY = 2, EXEC_SAME_CPU = 4 };
enum { CAUSE_NONE = 0, CAUSE_WALL = 1, CAUSE_CPU = 2, CAUSE_KILLED = 3, CAUSE_SYSCALL = 4, CAUSE_NOT_STARTED = 5 };
enum { DETAIL_AT_END = 1 }; // with CAUSE_CPU: found passed when the program had ended; nothing was killed for it
enum { CPU_NONE = 0, CPU_NANOSECONDS = 1, CPU_STAT = 2 };

struct head {
    uint16_t kind, flags;
    uint32_t length;
};

struct reader {
    const uint8_t *at, *end;
    bool bad;
};

static inline struct reader reader_of(const void *data, size_t length) {
    return (struct reader){data, (const uint8_t *)data + length, false};
}
static inline const void *rd_raw(struct reader *r, size_t n) {
    if (r->bad || (size_t)(r->end - r->at) < n) {
        r->bad = true;
        return NULL;
    }
    const uint8_t *at = r->at;
    r->at += n;
    return at;
}
// clang-format off
#define RD(type)                                             \
    static inline type##_t rd_##type(struct reader *r) {     \
        type##_t value = 0;                                  \
        const void *raw = rd_raw(r, sizeof value);           \
        if (raw)                                             \
            memcpy(&value, raw, sizeof value);               \
        return value;                                        \
    }
RD(uint8)
RD(uint16)
RD(uint32)
RD(uint64)
#undef RD
// clang-format on

static inline struct reader rd_block(struct reader *r) {
    uint32_t length = rd_uint32(r);
    const void *raw = rd_raw(r, length);
    return reader_of(raw ? raw : "", raw ? length : 0);
}
// A string of u32 length, its bytes, and a NUL that the length does not count; no NUL inside.
static inline const char *rd_str(struct reader *r) {
    uint32_t length = rd_uint32(r);
    const char *raw = r->bad || length > WIRE_MAX ? NULL : rd_raw(r, (size_t)length + 1);
    if (!raw || raw[length] != 0 || memchr(raw, 0, length)) {
        r->bad = true;
        return "";
    }
    return raw;
}

struct writer {
    uint8_t data[512];
    size_t length;
};
static inline void wr(struct writer *w, const void *value, size_t size) {
    if (w->length + size <= sizeof w->data) {
        memcpy(w->data + w->length, value, size);
        w->length += size;
    }
}
static inline void wr_u8(struct writer *w, uint8_t v) {
    wr(w, &v, sizeof v);
}
static inline void wr_u32(struct writer *w, uint32_t v) {
    wr(w, &v, sizeof v);
}
static inline void wr_u64(struct writer *w, uint64_t v) {
    wr(w, &v, sizeof v);
}

// message.c
struct message {
    struct head head;
    struct reader body;
    int fds[WIRE_FDS];
    int nfds;
    int lost;       // of a datagram that was dropped though it was well-formed: the errno that says for want of what; else 0
    uint8_t *space; // where to receive to, NULL: a buffer that every message shares
    size_t room;
    void *mapped; // a large body's own memory; message_drop unmaps it
    size_t mapped_size;
};
int message_receive(int sock, int flags, struct message *m); // 1, 0 at the end of the stream, -1 with errno
void message_drop(struct message *m);                        // closes what is left in fds, unmaps
int message_send(int sock, uint16_t kind, const struct writer *w, const int *fds, int nfds);
// The body is what `w` holds and, behind it, what is left of `tail` (NULL: nothing).
int message_send_with(int sock, uint16_t kind, const struct writer *w, const struct reader *tail, const int *fds, int nfds);

#endif
