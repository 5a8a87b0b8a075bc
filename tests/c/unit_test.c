// unit_test.c: the reader and the writer, messages over a real socket pair, requests and operations.
#include "stubs.h"
// From here on the calls are the kernel's again.
#undef syscall
#undef close
#undef fstat
#undef write
#undef pread
#undef pwrite
#undef openat
#undef fcntl
#undef socket
#include "exec.h"

#include <sys/mman.h>

static int ends[2];

static int highest_fd(void) {
    int fd = fcntl(0, F_DUPFD, 0);
    close(fd);
    return fd; // the lowest free one: it rises with every leak
}

static void send_raw(const void *data, size_t size, const int *fds, int nfds) {
    struct iovec iov = {(void *)data, size};
    char control[CMSG_SPACE(sizeof(int) * 253)] = {0};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
    if (nfds) {
        msg.msg_control = control;
        msg.msg_controllen = CMSG_SPACE(sizeof(int) * (size_t)nfds);
        struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof(int) * (size_t)nfds);
        memcpy(CMSG_DATA(c), fds, sizeof(int) * (size_t)nfds);
    }
    CHECK(sendmsg(ends[0], &msg, 0) == (ssize_t)size);
}

static void send_head(uint16_t flags, uint32_t length, const char *body, const int *fds, int nfds) {
    uint8_t raw[256];
    struct head head = {MSG_EXEC, flags, length};
    memcpy(raw, &head, sizeof head);
    memcpy(raw + sizeof head, body, strlen(body));
    send_raw(raw, sizeof head + strlen(body), fds, nfds);
}

static int memfd_of(const char *text) {
    int fd = memfd_create("test", MFD_CLOEXEC);
    CHECK(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text));
    return fd;
}

// Receives, expects a refusal, and that no descriptor stays open.
static void refused(void) {
    struct message m = {.space = NULL};
    int before = highest_fd();
    CHECK(message_receive(ends[1], MSG_DONTWAIT, &m) == -1 && errno == EPROTO && m.nfds == 0 && !m.mapped);
    CHECK(highest_fd() == before);
}

static void test_reader_stops_at_its_end(void) {
    struct reader r = reader_of("\1\2\3", 3);
    CHECK(rd_uint16(&r) == 0x0201 && !r.bad);
    CHECK(rd_uint32(&r) == 0 && r.bad);
    CHECK(rd_uint8(&r) == 0); // bad stays bad, though a byte is left
    r = reader_of("", 0);
    CHECK(rd_uint8(&r) == 0 && r.bad);
}

static void test_strings_have_their_nul(void) {
    struct reader r = reader_of("\2\0\0\0ab\0", 7);
    CHECK(!strcmp(rd_str(&r), "ab") && !r.bad && r.at == r.end);
    r = reader_of("\2\0\0\0abc", 7);
    CHECK(!*rd_str(&r) && r.bad);
    r = reader_of("\2\0\0\0a\0\0", 7); // a NUL inside
    CHECK(!*rd_str(&r) && r.bad);
    r = reader_of("\3\0\0\0ab\0", 7); // one byte short
    CHECK(!*rd_str(&r) && r.bad);
    r = reader_of("\377\377\377\377", 4); // length + 1 would be 0
    CHECK(!*rd_str(&r) && r.bad);
}

static void test_blocks_are_bounded(void) {
    struct reader r = reader_of("\2\0\0\0xyz", 7), b = rd_block(&r);
    CHECK(b.end - b.at == 2 && r.end - r.at == 1 && !r.bad);
    r = reader_of("\4\0\0\0xyz", 7);
    b = rd_block(&r);
    CHECK(r.bad && b.at == b.end);
}

static void test_writer_never_overflows(void) {
    struct writer w = {.length = 0};
    for (int i = 0; i < 100; i++)
        wr_u64(&w, 1);
    CHECK(w.length == sizeof w.data);
}

static void test_messages_arrive(void) {
    int fds[2] = {memfd_of("a"), memfd_of("b")};
    struct message m = {.space = NULL};
    struct writer w = {.length = 0};
    wr_u32(&w, 7);
    CHECK(message_send(ends[0], MSG_DONE, &w, fds, 2) == 0);
    CHECK(message_receive(ends[1], 0, &m) == 1 && m.head.kind == MSG_DONE && m.nfds == 2);
    CHECK(rd_uint32(&m.body) == 7 && m.body.at == m.body.end);
    CHECK(fcntl(m.fds[0], F_GETFD) == FD_CLOEXEC);
    message_drop(&m);
    CHECK(message_receive(ends[1], MSG_DONTWAIT, &m) == -1 && errno == EAGAIN);
    CHECK(message_send(ends[0], MSG_DONE, &w, fds, WIRE_FDS + 1) == -1 && errno == E2BIG);
    close(fds[0]);
    close(fds[1]);
}

static void test_malformed_messages_are_refused(void) {
    static char large[WIRE_INLINE + sizeof(struct head) + 8];
    int fd = memfd_of("x");
    send_raw("\1\0\0", 3, &fd, 1); // shorter than a head
    refused();
    send_head(0, 5, "four", &fd, 1); // another length than it says
    refused();
    send_raw(large, sizeof large, &fd, 1); // longer than we take
    refused();
    send_raw("", 0, &fd, 1); // empty, but with a descriptor: not the end of the stream
    refused();
    close(fd);
}

static void test_large_bodies_come_in_a_memfd(void) {
    struct message m = {.space = NULL};
    int fds[2] = {memfd_of("first"), memfd_of("the body")};
    send_head(HEAD_MEMFD, 8, "", fds, 2);
    CHECK(message_receive(ends[1], 0, &m) == 1 && m.nfds == 1 && m.body.end - m.body.at == 8 && !memcmp(m.body.at, "the body", 8));
    CHECK(pwrite(fds[1], "XXX", 3, 0) == 3 && !memcmp(m.body.at, "the body", 8)); // it was copied
    message_drop(&m);
    send_head(HEAD_MEMFD, 9, "", fds, 2); // it says more than there is
    refused();
    send_head(HEAD_MEMFD, 0, "", fds, 2); // nothing to map
    refused();
    send_head(HEAD_MEMFD, WIRE_MAX + 1, "", fds, 2);
    refused();
    send_head(HEAD_MEMFD, 8, "", NULL, 0);
    refused();
    int pipe_fds[2];
    CHECK(pipe2(pipe_fds, O_CLOEXEC) == 0);
    send_head(HEAD_MEMFD, 8, "", pipe_fds, 1); // no regular file: reading it would block
    refused();
    close(pipe_fds[0]);
    close(pipe_fds[1]);
    close(fds[0]);
    close(fds[1]);
}

static void test_too_many_descriptors_are_refused(void) {
    int fds[253], body = memfd_of("body");
    for (int i = 0; i < 253; i++)
        fds[i] = body;
    send_head(HEAD_MEMFD, 4, "", fds, WIRE_FDS + 1); // one is dropped: the last of the others is not the body
    refused();
    send_head(0, 0, "", fds, 253); // more than the buffer takes: MSG_CTRUNC
    refused();
    struct message m = {.space = NULL};
    send_head(0, 0, "", fds, WIRE_FDS);
    CHECK(message_receive(ends[1], 0, &m) == 1 && m.nfds == WIRE_FDS);
    message_drop(&m);
    close(body);
}

static void test_descriptors_that_do_not_fit_the_limit_are_refused(void) {
    struct rlimit old, few;
    int fds[4] = {0, 0, 0, 0};
    CHECK(getrlimit(RLIMIT_NOFILE, &old) == 0);
    few = (struct rlimit){(rlim_t)highest_fd() + 2, old.rlim_max};
    send_head(0, 0, "", fds, 4);
    CHECK(setrlimit(RLIMIT_NOFILE, &few) == 0);
    refused();
    CHECK(setrlimit(RLIMIT_NOFILE, &old) == 0);
}

static void test_the_end_of_the_stream_is_0(void) {
    struct message m = {.space = NULL};
    close(ends[0]);
    CHECK(message_receive(ends[1], 0, &m) == 0);
    struct writer w = {.length = 0};
    CHECK(message_send(ends[1], MSG_DONE, &w, NULL, 0) == -1 && errno == EPIPE); // and no SIGPIPE
    close(ends[1]);
}

// ---- exec_parse ----

struct draft {
    uint8_t data[4096];
    size_t length;
};
static void put(struct draft *d, uint64_t value, size_t size) {
    memcpy(d->data + d->length, &value, size);
    d->length += size;
}
static void put_text(struct draft *d, const char *text) {
    put(d, strlen(text), 4);
    memcpy(d->data + d->length, text, strlen(text) + 1);
    d->length += strlen(text) + 1;
}

// A small request; reference and target of its one descriptor, and its number of arguments, are the caller's.
static struct draft request_of(uint16_t reference, uint32_t target, uint32_t argc) {
    struct draft d = {.length = 0};
    for (int i = 0; i < 4; i++)
        put(&d, 0, 4); // flags, uid, gid, ngroups
    put_text(&d, "/");
    put(&d, 022, 4), put(&d, 0, 8), put(&d, 0, 8), put(&d, 1000, 4); // umask, wall, cpu, cpus
    put(&d, NO_SLOT, 2), put(&d, 0, 1), put(&d, NO_SLOT, 2), put(&d, 0, 2); // cpu fd and format, cgroup, joins
    put(&d, 1, 2), put(&d, reference, 2), put(&d, target, 4);
    put(&d, 0, 2), put(&d, 0, 2), put(&d, 0, 2), put(&d, 1, 4); // limits, rows, columns, candidates
    put_text(&d, "/bin/true");
    put(&d, argc, 4), put(&d, 0, 4);
    for (uint32_t i = 0; i < argc && i < 3; i++)
        put_text(&d, "arg");
    return d;
}

static bool parses(const struct draft *d, size_t length) {
    static struct exec_request x;
    int fds[] = {0, -1};
    uint8_t *copy = malloc(length + 1); // of its own length, for ASan
    memcpy(copy, d->data, length);
    bool good = exec_parse(&x, reader_of(copy, length), fds, 2);
    exec_forget(&x);
    free(copy);
    return good;
}

static void test_requests(void) {
    struct draft d = request_of(0, 3, 2);
    CHECK(parses(&d, d.length));
    for (size_t length = 0; length < d.length; length++)
        CHECK(!parses(&d, length)); // every truncation
    d.length++;
    CHECK(!parses(&d, d.length)); // something follows
    d = request_of(1, 3, 1);
    CHECK(!parses(&d, d.length)); // a descriptor that is not there
    d = request_of(2, 3, 1);
    CHECK(!parses(&d, d.length)); // past the list
    d = request_of(NO_SLOT, 3, 1);
    CHECK(!parses(&d, d.length)); // none, where one is needed
    d = request_of(OWN_NULL, 3, 1);
    CHECK(parses(&d, d.length)); // the container's own, which is in no list
    d = request_of(0, UINT32_MAX, 1);
    CHECK(!parses(&d, d.length)); // a target that is no descriptor
    d = request_of(0, 3, 0);
    CHECK(!parses(&d, d.length)); // no argv[0]
    d = request_of(0, 3, UINT32_MAX);
    CHECK(!parses(&d, d.length)); // more than the message can hold, and argc + 1 would be 0
}

// ---- operations ----

static int run_ops(struct ops *o, const struct draft *d) {
    uint8_t *copy = malloc(d->length);
    memcpy(copy, d->data, d->length);
    int result = ops_run(o, reader_of(copy, d->length));
    free(copy);
    return result;
}

static void test_operations(void) {
    static int slots[SLOTS];
    struct ops o;
    struct draft d = {.length = 0};
    stub_start(&o, slots, 1);
    put(&d, 1, 4), put(&d, 99, 2), put(&d, 0, 2), put(&d, 0, 4); // no such operation
    CHECK(run_ops(&o, &d) == -1 && errno == EPROTO && o.index == 0);
    d.length = 0;
    put(&d, 2, 4), put(&d, 22, 2), put(&d, 0, 2), put(&d, 2, 4), put(&d, 0, 2); // close slot 0, then nothing
    CHECK(run_ops(&o, &d) == -1 && errno == EPROTO && o.index == 1 && slots[0] == -1);
    d.length = 0;
    put(&d, 1, 4), put(&d, 22, 2), put(&d, 1, 2), put(&d, 2, 4), put(&d, 0, 2); // a broken one is not optional
    CHECK(run_ops(&o, &d) == -1 && errno == EPROTO && o.nskipped == 0);
    d.length = 0;
    put(&d, 1, 4), put(&d, 22, 2), put(&d, 0, 2), put(&d, 8, 4), put(&d, 0, 2); // its body goes past the end
    CHECK(run_ops(&o, &d) == -1 && errno == EPROTO);
    stub_finish(&o);
}

int main(void) {
    CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0);
    int size = 1 << 20;
    setsockopt(ends[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    test_reader_stops_at_its_end();
    test_strings_have_their_nul();
    test_blocks_are_bounded();
    test_writer_never_overflows();
    test_messages_arrive();
    test_malformed_messages_are_refused();
    test_large_bodies_come_in_a_memfd();
    test_too_many_descriptors_are_refused();
    test_descriptors_that_do_not_fit_the_limit_are_refused();
    test_the_end_of_the_stream_is_0();
    test_requests();
    test_operations();
    puts("unit_test: all passed");
    return 0;
}
