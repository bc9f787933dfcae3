/* The machine's limit: a WebSocket server that makes only the necessary system calls.

   limit PORT [joined]

   Each message goes to all clients of its room, whose name is the end of the path: r and a number. Without
   "joined", each message is one send() for each client; with it, all messages of one turn of epoll are one.
   client.c always sends the handshake key of RFC 6455, section 1.3, so its answer is a constant.
   A client that does not read is disconnected. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#define ROOMS 4096
#define FILES 65536

struct room {
    int *clients, count, capacity, used;
    char frames[1 << 16];
};
static struct room *rooms[ROOMS];
static int room_of[FILES], dirty[ROOMS], dirty_count, poller;
static bool greeted[FILES], joined;
static char input[1 << 16];

static void drop(int client) {
    struct room *room = greeted[client] ? rooms[room_of[client]] : NULL;
    for (int i = 0; room && i < room->count; i++)
        if (room->clients[i] == client)
            room->clients[i--] = room->clients[--room->count];
    greeted[client] = false;
    close(client);
}

static void flush(struct room *room) {
    for (int i = room->count - 1; i >= 0; i--)
        if (send(room->clients[i], room->frames, room->used, MSG_NOSIGNAL) != room->used)
            drop(room->clients[i]);
    room->used = 0;
}

static void tell(int number, const unsigned char *data, size_t size) {
    struct room *room = rooms[number];
    if (room->used + size + 4 > sizeof room->frames)
        flush(room);
    if (!room->used && joined)
        dirty[dirty_count++] = number;
    unsigned char *out = (unsigned char *)room->frames + room->used;
    *out++ = 0x81;
    if (size < 126) {
        *out++ = size;
    } else {
        *out++ = 126;
        *out++ = size >> 8;
        *out++ = size & 255;
    }
    memcpy(out, data, size);
    room->used = (char *)out + size - room->frames;
    if (!joined)
        flush(room);
}

static void greet(int client, char *text) {
    static const char answer[] = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
                                 "Connection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
    char *name = strstr(text, "/r");
    int number = name ? atoi(name + 2) % ROOMS : 0;
    if (!rooms[number])
        rooms[number] = calloc(1, sizeof **rooms);
    struct room *room = rooms[number];
    if (room->count == room->capacity)
        room->clients = realloc(room->clients, (room->capacity = room->capacity * 2 + 16) * sizeof(int));
    room->clients[room->count++] = client;
    room_of[client] = number;
    greeted[client] = true;
    if (send(client, answer, sizeof answer - 1, MSG_NOSIGNAL) < 0)
        drop(client);
}

/* Receive complete frames of less than 64 KiB in one read, as client.c sends them. */
static void receive(int client) {
    ssize_t got = recv(client, input, sizeof input - 1, 0);
    if (got <= 0) {
        drop(client);
        return;
    }
    input[got] = 0;
    if (!greeted[client]) {
        greet(client, input);
        return;
    }
    unsigned char *head = (unsigned char *)input, *end = head + got;
    while (greeted[client] && end - head >= 6) {
        size_t size = head[1] & 127, header = 2;
        int opcode = head[0] & 15;
        if (size == 126) {
            size = head[2] << 8 | head[3];
            header = 4;
        }
        unsigned char *mask = head + header, *data = mask + 4;
        if (data + size > end)
            break;
        for (size_t i = 0; i < size; i++)
            data[i] ^= mask[i & 3];
        if (opcode == 1)
            tell(room_of[client], data, size);
        head = data + size;
    }
}

int main(int argc, char **argv) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(argc > 1 ? atoi(argv[1]) : 0)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    joined = argc > 2;
    int on = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096)) {
        perror("limit");
        return 1;
    }
    poller = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener}, events[1024];
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int count = epoll_wait(poller, events, 1024, -1);
        for (int i = 0; i < count; i++) {
            if (events[i].data.fd != listener) {
                receive(events[i].data.fd);
                continue;
            }
            int client = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
            if (client < 0)
                continue;
            if (client >= FILES) {
                close(client);
                continue;
            }
            setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
            struct epoll_event wanted = {.events = EPOLLIN, .data.fd = client};
            epoll_ctl(poller, EPOLL_CTL_ADD, client, &wanted);
        }
        while (dirty_count)
            flush(rooms[dirty[--dirty_count]]);
    }
}
