/* A switch between virtual nodes: packets of version 4 of the Internet protocol, each read from the TUN device of one
 * node and written to that of another, with a delay and a rate. One thread; time is that of CLOCK_MONOTONIC.
 *
 * Every node has a cable in each direction. A packet occupies the sender's cable for its bytes / rate, arrives
 * `delay` later, and occupies the receiver's cable for the same time. A cable that is busy makes it wait, so two
 * senders share the rate of their receiver. The first byte is passed on before the last one has arrived.
 *
 * The kernel hands over segments of one TCP connection as one packet of up to 64 KiB, which keeps the switch cheap.
 * It counts and delays such a packet as one. */
#ifndef SWITCH_H
#define SWITCH_H

#include <stdbool.h>
#include <stdint.h>

enum { SWITCH_NODES_MAX = 64 };

struct switch_counters {
    uint64_t sent_bytes, sent_packets;         /* of this node, those that a cut took included */
    uint64_t received_bytes, received_packets; /* by this node */
    uint64_t sent_payload, received_payload;   /* those of these bytes that follow the headers of TCP and UDP */
    uint64_t dropped_packets;                  /* to this node: cut off, or more than its queue takes */
};

/* Add the next node: its TUN device, which does not block, with virtio headers, and its address in network byte
 * order. */
void switch_add(int tun, uint32_t address);

/* One way, for packets that are sent from now on. */
void switch_set_delay(int64_t delay_ns);

/* Of every cable; 0 is unlimited. */
void switch_set_rate(double bits_per_s);

/* Join or cut two nodes in both directions. A cut also drops the packets between them that are under way. */
void switch_connect(int first, int second, bool connected);

struct switch_counters switch_counters(int node);

/* Pass packets on until `fd` is readable. Returns false if polling fails. */
bool switch_run_until_readable(int fd);

#endif
