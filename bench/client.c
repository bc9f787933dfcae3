/* The load generator: opens WebSockets, publishes, and measures the latency of what arrives.

   client PORT[,PORT]... SUBSCRIBERS PUBLISHERS ROOMS CONCURRENT SUBPROTOCOL PUBLISH ACK
          PATH [GREETING REPLY]... -- PATH [GREETING REPLY]...

   The last two lists are the path and the greetings of subscribers and of publishers. The next GREETING is
   sent when the REPLY has arrived (at once if it is ""). In all texts %r is the name of a room, %m a message
   and %n a number. CONCURRENT is the number of connections that are opened at the same time.

   The program prints an event when all are connected, then runs one measurement for each line of stdin:

   window N SECONDS    N messages are in flight: when one has reached all clients, the next is sent
   publish N SECONDS   N publishers, each of which sends the next message when the last was acknowledged
   rate N SECONDS      N messages a second at fixed times; latency counts from the time a message was due

   Each prints the events begin (after a warm-up), end (the result; `generator` is the share of its core that
   the program used) and drained (the messages that never arrived). Each event is one line of JSON. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define MESSAGE 120          /* bytes of a message: MARK, the time in hex, padding */
#define MARK "@@"
#define BUCKET 5000          /* nanoseconds */
#define BUCKETS (1 << 20)
#define STEPS 4
#define CONNECT_TIMEOUT 60.0        /* seconds to connect all clients */
#define MISSING_TIMEOUT 30.0           /* seconds to wait for missing messages at the end */
#define SLOW_START 20.0          /* seconds to wait for the first messages of a slow server */
#define WARM_UP 0.3

struct role {
    const char *path;
    int steps;
    const char *greeting[STEPS], *ready[STEPS];
};
enum state { CONNECTING, HANDSHAKE, GREETING, READY, CLOSED };
struct connection {
    int fd, room, step, kept;
    enum state state;
    const struct role *role;
    char *rest;              /* `kept` bytes of an incomplete frame */
    uint64_t sent;           /* time of the message that awaits its acknowledgement */
};

static struct role subscriber, publisher;
static struct connection *connections;
static int subscribers, publishers, rooms, concurrent, total, opened, ready, closed, poller;
static int ports[16], port_count;
static const char *subprotocol, *publish_text, *ack_mark;
static uint64_t deliveries, echoed, acks, sent, expected; /* `echoed`: received by publishers, which is an error */
static uint32_t histogram[BUCKETS];
static bool acknowledging, sending;
static char input[1 << 20];

static void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "client: ");
    vfprintf(stderr, format, arguments);
    fprintf(stderr, "\n");
    exit(1);
}

static uint64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000ull + time.tv_nsec;
}

static double cpu_seconds(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_utime.tv_sec + usage.ru_stime.tv_sec + (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

/* Write `text` with room, message and number inserted; return its length. */
static int expand(char *out, size_t size, const char *text, int room, uint64_t due) {
    size_t used = 0;
    for (; *text; text++) {
        if (size - used < MESSAGE + 32)
            fail("text is too long: %s", text);
        if (*text != '%' || !strchr("rmn", text[1])) {
            out[used++] = *text;
            continue;
        }
        if (*++text == 'r') {
            used += sprintf(out + used, "r%d", room);
        } else if (*text == 'n') {
            used += sprintf(out + used, "%llu", (unsigned long long)sent + 10);
        } else {
            int length = sprintf(out + used, MARK "%016llx", (unsigned long long)due);
            memset(out + used + length, 'x', MESSAGE - length);
            used += MESSAGE;
        }
    }
    out[used] = 0;
    return used;
}

/* Frames of one connection, sent in one write. */
static char output[1 << 16];
static int output_used;
static struct connection *output_of;

static void flush(void) {
    if (output_used && send(output_of->fd, output, output_used, MSG_NOSIGNAL) != output_used)
        fail("the server does not read: %s", strerror(errno));
    output_used = 0;
}

static void write_frame(struct connection *connection, int opcode, const char *payload, int length) {
    static const unsigned char mask[4] = {0x37, 0xfa, 0x21, 0x3d};
    if (connection != output_of || output_used + length + 8 > (int)sizeof output)
        flush();
    output_of = connection;
    unsigned char *out = (unsigned char *)output + output_used;
    *out++ = 0x80 | opcode;
    if (length < 126) {
        *out++ = 0x80 | length;
    } else {
        *out++ = 0x80 | 126;
        *out++ = length >> 8;
        *out++ = length & 255;
    }
    memcpy(out, mask, 4);
    out += 4;
    for (int i = 0; i < length; i++)
        out[i] = payload[i] ^ mask[i & 3];
    output_used = (char *)out + length - output;
}

static void publish(struct connection *connection, uint64_t due) {
    char payload[2048];
    int length = expand(payload, sizeof payload, publish_text, connection->room, due);
    write_frame(connection, 1, payload, length);
    connection->sent = due;
    sent++;
    expected += subscribers / rooms;
}

static void open_one(void) {
    struct connection *connection = &connections[opened];
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(ports[opened / rooms % port_count])};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    connection->role = opened < subscribers ? &subscriber : &publisher;
    connection->room = (opened < subscribers ? opened : opened - subscribers) % rooms;
    connection->state = CONNECTING;
    connection->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (connection->fd < 0)
        fail("socket: %s", strerror(errno));
    int on = 1;
    setsockopt(connection->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    struct linger reset = {1, 0}; /* leave no port in TIME_WAIT */
    setsockopt(connection->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    if (connect(connection->fd, (struct sockaddr *)&address, sizeof address) < 0 && errno != EINPROGRESS)
        fail("connect: %s", strerror(errno));
    struct epoll_event event = {.events = EPOLLOUT, .data.ptr = connection};
    epoll_ctl(poller, EPOLL_CTL_ADD, connection->fd, &event);
    opened++;
}

static void request(struct connection *connection) {
    char path[512], text[1024];
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(connection->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error)
        fail("connect: %s", strerror(error));
    expand(path, sizeof path, connection->role->path, connection->room, 0);
    int length = snprintf(text, sizeof text,
        "GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n%s%s%s\r\n",
        path, *subprotocol ? "Sec-WebSocket-Protocol: " : "", subprotocol, *subprotocol ? "\r\n" : "");
    if (send(connection->fd, text, length, MSG_NOSIGNAL) != length)
        fail("send: %s", strerror(errno));
    connection->state = HANDSHAKE;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = connection};
    epoll_ctl(poller, EPOLL_CTL_MOD, connection->fd, &event);
}

/* Send the next greetings; a connection without further replies to await is ready. */
static void greet(struct connection *connection) {
    const struct role *role = connection->role;
    connection->state = GREETING;
    while (connection->step < role->steps) {
        char text[1024];
        int length = expand(text, sizeof text, role->greeting[connection->step], connection->room, 0);
        write_frame(connection, 1, text, length);
        flush();
        if (*role->ready[connection->step])
            return;
        connection->step++;
    }
    connection->state = READY;
    ready++;
}

static void count(uint64_t *counter, const char *data, size_t length, uint64_t at) {
    const char *end = data + length;
    while ((data = memmem(data, end - data, MARK, 2))) {
        uint64_t due = 0;
        for (int i = 2; i < 18 && data + i < end; i++)
            due = due << 4 | (data[i] <= '9' ? data[i] - '0' : data[i] - 'a' + 10);
        uint64_t bucket = at > due ? (at - due) / BUCKET : 0;
        histogram[bucket < BUCKETS ? bucket : BUCKETS - 1]++;
        ++*counter;
        if ((data += MESSAGE) >= end)
            return;
    }
}

static void acknowledged(struct connection *connection, uint64_t at) {
    uint64_t bucket = (at - connection->sent) / BUCKET;
    histogram[bucket < BUCKETS ? bucket : BUCKETS - 1]++;
    acks++;
    connection->sent = 0;
    if (sending)
        publish(connection, now());
}

static void on_message(struct connection *connection, const char *data, size_t length, uint64_t at) {
    if (connection->state == GREETING) {
        const char *mark = connection->role->ready[connection->step];
        if (memmem(data, length, mark, strlen(mark))) {
            connection->step++;
            greet(connection);
        }
    } else if (connection->role == &subscriber) {
        count(&deliveries, data, length, at);
    } else if (!acknowledging) {
        count(&echoed, data, length, at);
    } else if (connection->sent && memmem(data, length, ack_mark, strlen(ack_mark))) {
        acknowledged(connection, at);
    }
}

/* Process the complete frames in the data; return their length. */
static size_t frames(struct connection *connection, const char *data, size_t length, uint64_t at) {
    size_t taken = 0;
    while (length - taken >= 2) {
        const unsigned char *head = (const unsigned char *)data + taken;
        size_t header = 2, size = head[1] & 127, bytes = size == 126 ? 2 : size == 127 ? 8 : 0;
        if (length - taken < header + bytes)
            break;
        for (size = bytes ? 0 : size; bytes; bytes--)
            size = size << 8 | head[header++];
        if (length - taken < header + size)
            break;
        const char *payload = (const char *)head + header;
        int opcode = head[0] & 15;
        if (opcode == 9) {
            write_frame(connection, 10, payload, size);
            flush();
        } else if (opcode == 8) {
            fail("the server closed: %.*s", (int)(size > 2 ? size - 2 : 0), payload + 2);
        } else {
            on_message(connection, payload, size, at);
        }
        taken += header + size;
    }
    return taken;
}

static void receive(struct connection *connection) {
    size_t length = connection->kept;
    memcpy(input, connection->rest, length);
    ssize_t got = recv(connection->fd, input + length, sizeof input - length, 0);
    if (got < 0 && errno == EAGAIN)
        return;
    if (got <= 0) {
        if (connection->state != READY)
            fail("refused after %d connections: %s", ready, got ? strerror(errno) : "closed");
        closed++;
        connection->state = CLOSED;
        close(connection->fd);
        return;
    }
    uint64_t at = now();
    length += got;
    size_t taken = 0;
    if (connection->state == HANDSHAKE) {
        char *end = memmem(input, length, "\r\n\r\n", 4);
        if (end && memcmp(input, "HTTP/1.1 101", 12))
            fail("refused after %d connections: %.*s", ready, (int)(strchr(input, '\r') - input), input);
        if (end) {
            taken = end + 4 - input;
            greet(connection);
        }
    }
    if (connection->state != HANDSHAKE)
        taken += frames(connection, input + taken, length - taken, at);
    if (length - taken != (size_t)connection->kept)
        connection->rest = realloc(connection->rest, length - taken + 1);
    connection->kept = length - taken;
    memcpy(connection->rest, input + taken, length - taken);
}

/* Wait for events until `until` at the latest, and handle them. */
static void poll_once(uint64_t until) {
    struct epoll_event events[1024];
    uint64_t at = now(), wait = until > at ? until - at : 0;
    struct timespec timeout = {wait / 1000000000, wait % 1000000000};
    int count = epoll_pwait2(poller, events, 1024, &timeout, NULL);
    for (int i = 0; i < count; i++) {
        struct connection *connection = events[i].data.ptr;
        connection->state == CONNECTING ? request(connection) : receive(connection);
    }
}

static void connect_all(void) {
    uint64_t began = now(), deadline = began + CONNECT_TIMEOUT * 1e9;
    while (ready < total) {
        while (opened < total && opened - ready < concurrent)
            open_one();
        poll_once(deadline);
        if (now() > deadline)
            fail("only %d of %d connections are ready", ready, total);
    }
    double seconds = (now() - began) / 1e9;
    printf("{\"event\": \"connected\", \"seconds\": %.6f, \"generator\": %.4f}\n", seconds, cpu_seconds() / seconds);
    fflush(stdout);
}

static double percentile(double share) {
    uint64_t all = 0, seen = 0;
    for (int i = 0; i < BUCKETS; i++)
        all += histogram[i];
    for (int i = 0; i < BUCKETS; i++)
        if ((seen += histogram[i]) >= share * all && seen)
            return i * (BUCKET / 1e6);
    return 0;
}

/* Send the messages that are due; return the time of the next ones. */
static uint64_t send_due(char kind, double n, uint64_t began, uint64_t first, uint64_t deadline) {
    uint64_t next = deadline;
    if (kind == 'w') {
        uint64_t each = subscribers / rooms, waiting = expected - deliveries;
        for (uint64_t flying = (waiting + each - 1) / each; flying < n; flying++)
            publish(&connections[subscribers + sent % publishers], now());
    } else if (kind == 'r') {
        for (;;) {
            next = began + (sent - first) * 1e9 / n;
            if (next > now())
                break;
            publish(&connections[subscribers + sent % publishers], next);
        }
    }
    flush();
    return next < deadline ? next : deadline;
}

/* Run until `until`, or longer until there are `least` deliveries. */
static void go_on(char kind, double n, uint64_t began, uint64_t first, uint64_t until, uint64_t least) {
    uint64_t latest = until + SLOW_START * 1e9;
    while (now() < until || (deliveries < least && now() < latest))
        poll_once(send_due(kind, n, began, first, now() < until ? until : latest));
}

static void run(char kind, double n, double seconds) {
    uint64_t began = now(), first = sent, some = kind == 'w' ? n * (subscribers / rooms) : 0;
    expected = deliveries = echoed = acks = 0;
    acknowledging = kind == 'p';
    sending = true;
    for (int i = 0; acknowledging && i < n; i++)
        publish(&connections[subscribers + i], now());
    go_on(kind, n, began, first, began + WARM_UP * 1e9, some);
    printf("{\"event\": \"begin\"}\n");
    fflush(stdout);
    memset(histogram, 0, sizeof histogram);
    uint64_t deliveries_before = deliveries + echoed, acks_before = acks, sent_before = sent, start = now();
    double cpu = cpu_seconds();
    go_on(kind, n, began, first, start + seconds * 1e9, deliveries + 2 * some);
    double took = (now() - start) / 1e9, used = cpu_seconds() - cpu;
    printf("{\"event\": \"end\", \"seconds\": %.6f, \"messages\": %llu, \"deliveries\": %llu, \"acks\": %llu, "
        "\"p50_ms\": %.3f, \"p99_ms\": %.3f, \"generator\": %.4f}\n", took, (unsigned long long)(sent - sent_before),
        (unsigned long long)(deliveries + echoed - deliveries_before), (unsigned long long)(acks - acks_before),
        percentile(0.5), percentile(0.99), used / took);
    fflush(stdout);
    sending = false;
    flush();
    uint64_t deadline = now() + MISSING_TIMEOUT * 1e9;
    while (now() < deadline && (acknowledging ? acks < sent - first : deliveries < expected))
        poll_once(deadline);
    uint64_t missing = acknowledging ? sent - first - acks : expected - deliveries;
    printf("{\"event\": \"drained\", \"missing\": %lld, \"closed\": %d}\n", (long long)missing, closed);
    fflush(stdout);
}

static void read_role(struct role *role, char ***word) {
    if (!**word)
        fail("the path is missing");
    for (role->path = *(*word)++; **word && strcmp(**word, "--"); role->steps++) {
        if (role->steps == STEPS || !(*word)[1])
            fail("too many greetings, or one without a reply");
        role->greeting[role->steps] = *(*word)++;
        role->ready[role->steps] = *(*word)++;
    }
}

int main(int argc, char **argv) {
    if (argc < 11)
        fail("too few arguments: see the comment at the top of client.c");
    for (char *port = strtok(argv[1], ","); port && port_count < 16; port = strtok(NULL, ","))
        ports[port_count++] = atoi(port);
    subscribers = atoi(argv[2]);
    publishers = atoi(argv[3]);
    rooms = atoi(argv[4]);
    concurrent = atoi(argv[5]);
    subprotocol = argv[6];
    publish_text = argv[7];
    ack_mark = argv[8];
    char **word = argv + 9;
    read_role(&subscriber, &word);
    if (!*word)
        fail("the publisher's path is missing after --");
    word++;
    read_role(&publisher, &word);
    total = subscribers + publishers;
    if (rooms < 1 || subscribers % rooms || (publishers && publishers % rooms))
        fail("subscribers and publishers must be multiples of the rooms");
    connections = calloc(total, sizeof *connections);
    poller = epoll_create1(0);
    connect_all();
    char line[128], kind[16];
    double n, seconds;
    while (fgets(line, sizeof line, stdin)) {
        if (sscanf(line, "%15s %lf %lf", kind, &n, &seconds) != 3 || (*kind == 'p' && n > publishers))
            fail("invalid measurement: %s", line);
        run(*kind, n, seconds);
    }
    return 0;
}
