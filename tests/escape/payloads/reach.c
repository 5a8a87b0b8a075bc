// Who can be talked to? Each argument is a place, `KIND:WHERE`: tcp and udp with ADDRESS/PORT, stream, seqpacket and datagram with the name of an
// abstract Unix socket. The answer of a datagram's sender says nothing of whom it reached; whoever waits there does.
#include "try.h"
#include <arpa/inet.h>
#include <sys/un.h>

static long with_inet(int type, char *where) {
    char *slash = strrchr(where, '/');
    struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = htons(atoi(slash + 1))};
    struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_port = htons(atoi(slash + 1))};
    *slash = 0;
    int is_four = inet_pton(AF_INET, where, &four.sin_addr) == 1;
    if (!is_four && inet_pton(AF_INET6, where, &six.sin6_addr) != 1)
        exit(2);
    *slash = '/';
    int sock = socket(is_four ? AF_INET : AF_INET6, type, 0);
    struct timeval patience = {.tv_sec = 1};
    setsockopt(sock, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    long done = connect(sock, is_four ? (void *)&four : (void *)&six, is_four ? sizeof four : sizeof six);
    return done < 0 ? done : send(sock, "reached", 7, MSG_NOSIGNAL);
}

static long with_unix(int type, const char *name) {
    struct sockaddr_un place = {.sun_family = AF_UNIX};
    size_t length = strlen(name);
    memcpy(place.sun_path + 1, name, length);
    int sock = socket(AF_UNIX, type, 0);
    long done = connect(sock, (void *)&place, offsetof(struct sockaddr_un, sun_path) + 1 + length);
    return done < 0 ? done : send(sock, "reached", 7, MSG_NOSIGNAL);
}

int main(int argc, char **argv) {
    static const struct { const char *kind; int type; int is_inet; } kinds[] = {
        {"tcp", SOCK_STREAM, 1}, {"udp", SOCK_DGRAM, 1}, {"stream", SOCK_STREAM, 0}, {"seqpacket", SOCK_SEQPACKET, 0}, {"datagram", SOCK_DGRAM, 0}};
    for (int i = 1; i < argc; i++) {
        char *colon = strchr(argv[i], ':');
        for (size_t k = 0; k < sizeof kinds / sizeof kinds[0]; k++) {
            if (strncmp(argv[i], kinds[k].kind, colon - argv[i]) != 0 || strlen(kinds[k].kind) != (size_t)(colon - argv[i]))
                continue;
            errno = 0;
            long done = kinds[k].is_inet ? with_inet(kinds[k].type, colon + 1) : with_unix(kinds[k].type, colon + 1);
            int is_datagram_of_inet = kinds[k].is_inet && kinds[k].type == SOCK_DGRAM;
            printf("%s: %s\n", argv[i], done < 0 ? strerror(errno) : is_datagram_of_inet ? "sent" : "REACHED");
            fflush(stdout);
        }
    }
    puts("done: all tried");
    return 0;
}
