#include "switch.h"

#include <errno.h>
#include <linux/virtio_net.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum {
    HEADER = sizeof(struct virtio_net_hdr),
    PACKET_MAX = HEADER + 65536,
    BURST = 16, /* packets that are read from one node before the next gets its turn */
};
static const int64_t NEVER = INT64_MAX;
static const uint64_t QUEUE_BYTES_MAX = UINT64_C(64) << 20;

struct packet {
    int64_t due;
    struct packet *next;
    int from, length;
    uint8_t bytes[];
};

/* The packets to one node, by due. It is also their order of arrival, except after a shorter delay was set: then a
 * packet waits for those before it, as in a cable. */
struct queue {
    struct packet *first, **end;
    uint64_t nbytes;
};

struct node {
    int tun;
    uint32_t address;
    int64_t out_free_at, in_free_at; /* when its cables are free */
    struct queue queue;
    struct switch_counters counters;
    bool cut_from[SWITCH_NODES_MAX];
};

static struct node nodes[SWITCH_NODES_MAX];
static int count;
static int64_t delay_ns;
static double ns_per_byte;

static int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

static int64_t later(int64_t a, int64_t b) { return a > b ? a : b; }

void switch_add(int tun, uint32_t address)
{
    struct node *node = &nodes[count++];
    *node = (struct node){.tun = tun, .address = address};
    node->queue.end = &node->queue.first;
}

void switch_set_delay(int64_t ns) { delay_ns = ns; }

void switch_set_rate(double bits_per_s) { ns_per_byte = bits_per_s > 0 ? 8e9 / bits_per_s : 0; }

void switch_connect(int first, int second, bool connected)
{
    nodes[first].cut_from[second] = nodes[second].cut_from[first] = !connected;
}

struct switch_counters switch_counters(int node) { return nodes[node].counters; }

/* Return the number of bytes behind the packet's headers of IP and TCP or UDP. */
static uint64_t payload_of(const uint8_t *packet, int length)
{
    struct iphdr ip;
    memcpy(&ip, packet, sizeof ip);
    int headers = ip.ihl * 4;
    struct tcphdr tcp;
    if (ip.protocol == IPPROTO_TCP && length >= headers + (int)sizeof tcp) {
        memcpy(&tcp, packet + headers, sizeof tcp);
        headers += tcp.doff * 4;
    } else if (ip.protocol == IPPROTO_UDP) {
        headers += (int)sizeof(struct udphdr);
    } else {
        return 0;
    }
    return length > headers ? (uint64_t)(length - headers) : 0;
}

/* Return the index of the packet's destination, or -1: not IPv4, or none of the nodes. */
static int destination_of(const uint8_t *packet, int length)
{
    struct iphdr ip;
    if (length < (int)sizeof ip || packet[0] >> 4 != 4)
        return -1;
    memcpy(&ip, packet, sizeof ip);
    for (int i = 0; i < count; i++)
        if (nodes[i].address == ip.daddr)
            return i;
    return -1;
}

/* Reserve both cables; return the time at which the last byte is there. */
static int64_t transmit(struct node *from, struct node *to, int nbytes)
{
    int64_t takes = (int64_t)(nbytes * ns_per_byte);
    int64_t out = later(now_ns(), from->out_free_at);
    int64_t in = later(out + delay_ns, to->in_free_at);
    from->out_free_at = out + takes;
    to->in_free_at = in + takes;
    return in + takes;
}

static void deliver(struct node *to, int from, const uint8_t *bytes, int length)
{
    struct switch_counters *counters = &to->counters;
    if (to->cut_from[from] || write(to->tun, bytes, (size_t)length) < 0) {
        counters->dropped_packets++;
        return;
    }
    counters->received_packets++;
    counters->received_bytes += (uint64_t)(length - HEADER);
    counters->received_payload += payload_of(bytes + HEADER, length - HEADER);
}

static void enqueue(struct queue *queue, int from, int64_t due, const uint8_t *bytes, int length)
{
    struct packet *packet = malloc(sizeof *packet + (size_t)length);
    if (packet == NULL)
        abort();
    *packet = (struct packet){.due = due, .from = from, .length = length};
    memcpy(packet->bytes, bytes, (size_t)length);
    *queue->end = packet;
    queue->end = &packet->next;
    queue->nbytes += (uint64_t)length;
}

static void pass_on(int from, const uint8_t *bytes, int length)
{
    int nbytes = length - HEADER, index = destination_of(bytes + HEADER, nbytes);
    if (index < 0)
        return;
    struct node *to = &nodes[index], *sender = &nodes[from];
    sender->counters.sent_packets++;
    sender->counters.sent_bytes += (uint64_t)nbytes;
    sender->counters.sent_payload += payload_of(bytes + HEADER, nbytes);
    if (to->cut_from[from] || to->queue.nbytes > QUEUE_BYTES_MAX) {
        to->counters.dropped_packets++;
        return;
    }
    int64_t due = transmit(sender, to, nbytes);
    if (to->queue.first == NULL && due <= now_ns())
        deliver(to, from, bytes, length);
    else
        enqueue(&to->queue, from, due, bytes, length);
}

/* Deliver what is due to this node; return when its next packet is. */
static int64_t deliver_due(struct node *to)
{
    struct queue *queue = &to->queue;
    while (queue->first != NULL) {
        struct packet *packet = queue->first;
        if (packet->due > now_ns())
            return packet->due;
        queue->first = packet->next;
        if (queue->first == NULL)
            queue->end = &queue->first;
        queue->nbytes -= (uint64_t)packet->length;
        deliver(to, packet->from, packet->bytes, packet->length);
        free(packet);
    }
    return NEVER;
}

static void read_burst(int from)
{
    static uint8_t bytes[PACKET_MAX];
    for (int i = 0; i < BURST; i++) {
        ssize_t length = read(nodes[from].tun, bytes, sizeof bytes);
        if (length <= HEADER)
            return;
        pass_on(from, bytes, (int)length);
    }
}

bool switch_run_until_readable(int fd)
{
    struct pollfd polled[SWITCH_NODES_MAX + 1];
    for (int i = 0; i < count; i++)
        polled[i] = (struct pollfd){.fd = nodes[i].tun, .events = POLLIN};
    polled[count] = (struct pollfd){.fd = fd, .events = POLLIN};
    for (;;) {
        int64_t next = NEVER;
        for (int i = 0; i < count; i++) {
            int64_t due = deliver_due(&nodes[i]);
            next = due < next ? due : next;
        }
        int64_t wait = later(next - now_ns(), 0);
        struct timespec timeout = {wait / 1000000000, wait % 1000000000};
        int ready = ppoll(polled, (nfds_t)count + 1, next == NEVER ? NULL : &timeout, NULL);
        if (ready < 0 && errno != EINTR)
            return false;
        if (ready <= 0)
            continue;
        for (int i = 0; i < count; i++)
            if (polled[i].revents & POLLIN)
                read_burst(i);
        if (polled[count].revents)
            return true;
    }
}
