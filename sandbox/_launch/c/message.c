// message.c: one datagram of wire.md, in and out, with its descriptors.
#define _GNU_SOURCE
#include "sys.h"
#include "wire.h"

#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>

static uint8_t buffer[sizeof(struct head) + WIRE_INLINE];

// A body too large for a datagram comes in a memfd, the last descriptor. It is copied: nobody can change it under us.
static int load_memfd(struct message *m) {
    struct stat st;
    if (m->nfds < 1 || m->head.length > WIRE_MAX)
        return errno = EPROTO, -1;
    int fd = m->fds[--m->nfds];
    int result = -1;
    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || st.st_size < (off_t)m->head.length) {
        errno = EPROTO;
        goto out;
    }
    m->mapped_size = m->head.length;
    m->mapped = mmap(NULL, m->mapped_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (m->mapped == MAP_FAILED) {
        m->mapped = NULL;
        goto out;
    }
    for (size_t done = 0; done < m->mapped_size;) {
        ssize_t n = pread(fd, (char *)m->mapped + done, m->mapped_size - done, (off_t)done);
        if (n <= 0) {
            errno = n ? errno : EPROTO;
            goto out;
        }
        done += (size_t)n;
    }
    m->body = reader_of(m->mapped, m->mapped_size);
    result = 0;
out:
    close(fd);
    return result;
}

// False when there were more than a message may have.
static bool take_fds(struct message *m, struct msghdr *msg) {
    bool fit = true;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        int count = (int)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        for (int i = 0; i < count; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(c) + (size_t)i * sizeof fd, sizeof fd);
            if ((fit &= m->nfds < WIRE_FDS))
                m->fds[m->nfds++] = fd;
            else
                close(fd);
        }
    }
    return fit;
}

int message_receive(int sock, int flags, struct message *m) {
    union {
        char data[CMSG_SPACE(sizeof(int) * (WIRE_FDS + 1))];
        struct cmsghdr align;
    } control;
    uint8_t *space = m->space ? m->space : buffer;
    struct iovec iov = {space, m->space ? m->room : sizeof buffer};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.data, .msg_controllen = sizeof control.data};
    m->nfds = m->lost = 0;
    m->mapped = NULL;
    ssize_t n = recvmsg(sock, &msg, MSG_CMSG_CLOEXEC | flags);
    if (n < 0)
        return -1;
    bool fit = take_fds(m, &msg);
    if (n == 0 && m->nfds == 0)
        return 0;
    if (!fit || n < (ssize_t)sizeof m->head || msg.msg_flags & MSG_TRUNC)
        goto broken;
    memcpy(&m->head, space, sizeof m->head);
    if (msg.msg_flags & MSG_CTRUNC) {
        m->lost = EMFILE;
        goto broken;
    }
    if (m->head.flags & HEAD_MEMFD) {
        if (load_memfd(m) == 0)
            return 1;
        m->lost = errno == EPROTO ? 0 : errno;
        goto broken;
    }
    if (m->head.length != (size_t)n - sizeof m->head)
        goto broken;
    m->body = reader_of(space + sizeof m->head, m->head.length);
    return 1;
broken:
    message_drop(m);
    errno = EPROTO;
    return -1;
}

void message_drop(struct message *m) {
    for (int i = 0; i < m->nfds; i++)
        if (m->fds[i] >= 0)
            close(m->fds[i]);
    m->nfds = 0;
    if (m->mapped)
        munmap(m->mapped, m->mapped_size);
    m->mapped = NULL;
}

int message_send(int sock, uint16_t kind, const struct writer *w, const int *fds, int nfds) {
    return message_send_with(sock, kind, w, NULL, fds, nfds);
}

int message_send_with(int sock, uint16_t kind, const struct writer *w, const struct reader *tail, const int *fds, int nfds) {
    size_t first = w ? w->length : 0, rest = tail ? (size_t)(tail->end - tail->at) : 0;
    struct head head = {kind, 0, (uint32_t)(first + rest)};
    struct iovec iov[3] = {{&head, sizeof head}, {w ? (void *)w->data : NULL, first}, {tail ? (void *)tail->at : NULL, rest}};
    union {
        char data[CMSG_SPACE(sizeof(int) * WIRE_FDS)];
        struct cmsghdr align;
    } control;
    struct msghdr msg = {.msg_iov = iov, .msg_iovlen = 3};
    if (nfds > WIRE_FDS || first + rest > WIRE_INLINE)
        return errno = E2BIG, -1;
    if (nfds > 0) {
        msg.msg_control = control.data;
        msg.msg_controllen = CMSG_SPACE(sizeof(int) * (size_t)nfds);
        memset(control.data, 0, msg.msg_controllen);
        struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof(int) * (size_t)nfds);
        memcpy(CMSG_DATA(c), fds, sizeof(int) * (size_t)nfds);
    }
    // Never block and never raise SIGPIPE: a caller that does not read its few, small answers has gone.
    return sendmsg(sock, &msg, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 ? -1 : 0;
}
