/* One session's exchange of a board: which frames of which step are expected, and the arithmetic between them. It knows
 * neither sockets nor threads; link.h drives it.
 *
 *     own shards of step t are done --> exchange_start:  META and RAW to everyone
 *                                       exchange_work:   the roots, chunk by chunk, to who folds them
 *     frames of peers ----------------> exchange_accept, exchange_arrived: roots into memory of the session,
 *                                                        sums straight into the board's sum buffer
 *     every root of a chunk is there -> exchange_work:   fold it into the board's sum buffer; its sum to everyone
 *     nothing is missing -------------> exchange_finish: the sum is announced, the remote shards are committed
 *
 * What is written when, and why nothing is torn:
 *   - The sum buffer is read by norms and updates of a step whose sum is announced. It is written between
 *     exchange_start and exchange_finish of a step only. At exchange_start of step t the board is in phase (t,
 *     GRADIENT), so the update of step t-1 is over; and phase (t, GRADIENT) cannot end before exchange_finish, since
 *     remote shards are missing.
 *   - For the same reason nobody writes to the own shards' buffers meanwhile: they are named by words that are DONE.
 *   - Bytes that are sent lie in memory of the session, or in the sum buffer. Both are written for step t+1 only after
 *     exchange_start, which the link calls when it has sent all that step t left to send.
 *   - A peer is at most one step ahead: to begin step t+2 it needs META of step t+1 from here. What it sends of step
 *     t+1 is parked until this node is there.
 */
#ifndef UNTORN_EXCHANGE_H
#define UNTORN_EXCHANGE_H

#include "exchange_plan.h"
#include "frames.h"

/* Where frames go that are to be sent; `bytes` stay as they are until they are sent. */
struct exchange_sink {
    void (*send)(void *self, uint32_t peer, struct frame frame, const uint8_t *bytes);
    void *self;
};

/* What a peer said of its shards. */
struct exchange_meta {
    uint32_t metrics;
    double values[]; /* of each of its shards: loss, and the metrics */
};

struct exchange {
    struct exchange_plan plan;
    struct board board;
    uint64_t session, step;
    bool started; /* exchange_start was called for this step */
    /* memory */
    uint8_t *memory;     /* all of the following */
    uint8_t *own_roots;  /* [own roots][payload] */
    uint8_t *peer_roots; /* [roots of peers][region] */
    uint8_t *raw;        /* [shards][raw] own ones to send, others as they came */
    double *measured;    /* [shards][1 + BOARD_METRICS] packed node by node as they travel */
    uint32_t *metrics;   /* [nodes] how many a node sent */
    /* progress of the step */
    uint8_t *roots_came;                  /* [roots][region] */
    uint8_t *sums_came;                   /* [chunks] */
    uint8_t *raw_came;                    /* [shards][raw chunks] */
    uint8_t *metas_came;                  /* [nodes] */
    uint32_t *missing;                    /* [region] roots of peers that are missing, and 1 for the own */
    uint32_t *ready;                      /* [region] chunks to fold */
    uint32_t summed, folded, ready_count; /* chunks whose own roots are made; folded; in `ready` */
    uint64_t still;                       /* frames of peers that are still to come */
    const uint8_t **own;                  /* [shards] the own shards' gradients; NULL for the others */
};

/* Make the exchange of a session, which begins at the board's first incomplete step. The plan is taken over. STATUS_OS:
 * no memory. */
enum status exchange_make(struct exchange *exchange, const struct board *board, struct exchange_plan *plan,
                          uint64_t session);
void exchange_free(struct exchange *exchange);

/* Return the most frames that one step sends to one peer. */
uint32_t exchange_frames_max(const struct exchange *exchange);
/* Return whether the step may start: its own shards are done. */
bool exchange_is_due(const struct exchange *exchange);
/* Start the step. Returns a shard whose number of examples is not that of the table, or -1. */
int64_t exchange_start(struct exchange *exchange, const struct exchange_sink *sink);
/* Do a piece of what can be done; false if there is nothing to do before more frames come. */
bool exchange_work(struct exchange *exchange, const struct exchange_sink *sink);
/* Return whether this node has sent all its roots, so that it only waits for peers. */
bool exchange_is_waiting(const struct exchange *exchange);
bool exchange_is_complete(const struct exchange *exchange);
/* Announce the sum, commit the remote shards, and go on to the next step. */
void exchange_finish(struct exchange *exchange);

/* Judge a frame of the current session or of another one, `into` and `error` as in frames.h. */
enum frame_verdict exchange_accept(struct exchange *exchange, uint32_t peer, const struct frame *frame, uint8_t **into,
                                   const char **error);
/* The bytes of a frame that was taken are there. */
void exchange_arrived(struct exchange *exchange, uint32_t peer, const struct frame *frame);

#endif
