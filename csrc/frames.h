/* Frames: what nodes send each other, and how a connection's bytes become frames and frames become bytes.
 *
 * A frame is a header and the bytes that belong to it, in the byte order of x86-64 and aarch64. Nothing in it is a
 * pointer, a type or code. Whoever reads it checks each field against what it expects, before a byte is stored.
 *
 *     ALIVE   nothing; both sides send one now and then, so that silence means something
 *     META    of a step: loss and metrics of each shard of the sender. index: the number of metrics
 *     RAW     of a step: a piece of what a shard computed that is not summed. index: the shard
 *     ROOT    of a step: a chunk of a root of the tree. index: the root
 *     SUM     of a step: a chunk of the sum. index: 0
 *
 * The input knows no sockets: its user puts bytes where it wants them, and says how many came.
 */
#ifndef UNTORN_FRAMES_H
#define UNTORN_FRAMES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

enum frame_kind { FRAME_ALIVE = 1, FRAME_META = 2, FRAME_RAW = 3, FRAME_ROOT = 4, FRAME_SUM = 5 };
enum { FRAME_MAX_NBYTES = 1 << 20, FRAME_BUFFER_NBYTES = 64 * 1024, FRAME_DIRECT_NBYTES = 16 * 1024 };
#define FRAME_MAGIC UINT32_C(0x31787475) /* "utx1" */

struct frame {
    uint32_t magic;
    uint32_t kind;
    uint64_t session, step, offset; /* offset: in the payload, or in the shard's raw bytes */
    uint32_t index, nbytes;         /* nbytes: behind the header */
};
_Static_assert(sizeof(struct frame) == 40, "no padding travels");

struct frame frame_make(enum frame_kind kind, uint64_t session, uint64_t step, uint32_t index, uint64_t offset,
                        uint32_t nbytes);
/* Return what is wrong with a header, whatever the session, or NULL. */
const char *frame_error(const struct frame *frame);

/* -- from bytes to frames
 * ------------------------------------------------------------------------------------------- */

/* What becomes of a frame. */
enum frame_verdict {
    FRAME_TAKE,   /* its bytes go to the place that was named */
    FRAME_DROP,   /* its bytes are read and forgotten */
    FRAME_PARK,   /* it is of a later time: nothing more is read until then */
    FRAME_REFUSE, /* the peer is broken */
};

/* Decides about frames. `accept` names the place for the bytes, or says why the frame is refused; `arrived` is called
 * once the bytes of a frame that was taken are there. */
struct frame_user {
    enum frame_verdict (*accept)(void *self, uint32_t peer, const struct frame *frame, uint8_t **into,
                                 const char **error);
    void (*arrived)(void *self, uint32_t peer, const struct frame *frame);
    void *self;
    uint32_t peer;
};

/* One connection's input. */
struct frame_input {
    struct frame frame; /* the one whose bytes come, if `inside` */
    bool inside, parked;
    uint8_t *into; /* where the rest of its bytes go; NULL: they are forgotten */
    uint32_t left;
    const char *error;   /* why the peer is broken */
    uint32_t start, end; /* of what lies in the buffer */
    uint8_t buffer[FRAME_BUFFER_NBYTES];
};

/* Where the next bytes go, and how many; none while the input is parked or broken. */
struct iovec frame_input_room(struct frame_input *input);
/* So many bytes came. False if the peer is broken: `error` says how. */
bool frame_input_took(struct frame_input *input, size_t nbytes, const struct frame_user *user);
/* Look again at the frame at which it was parked. */
bool frame_input_resume(struct frame_input *input, const struct frame_user *user);
/* The places that were named are no longer valid: forget the rest of the bytes of the frame that was taken. */
void frame_input_forget(struct frame_input *input);

/* -- from frames to bytes
 * ------------------------------------------------------------------------------------------- */

struct frame_out {
    struct frame frame;
    const uint8_t *bytes; /* stay as they are until they are sent */
};

/* One connection's output: a ring. */
struct frame_output {
    struct frame_out *ring;
    uint32_t capacity, first, count;
    uint64_t sent;   /* of the first frame, header included */
    uint8_t *memory; /* of its own, for the rest of a frame whose bytes go away */
};

bool frame_output_make(struct frame_output *output, uint32_t capacity);
void frame_output_free(struct frame_output *output);
/* False if the ring is full. */
bool frame_output_add(struct frame_output *output, struct frame frame, const uint8_t *bytes);
/* Fill in what is to be sent next; returns the number of pieces. */
int frame_output_pieces(const struct frame_output *output, struct iovec *pieces, int most);
/* So many bytes were sent. */
void frame_output_sent(struct frame_output *output, size_t nbytes);
/* Forget the frames of which nothing was sent; keep the bytes of one that was sent in part. False without memory: then
 * the connection cannot be used any more. */
bool frame_output_forget(struct frame_output *output);

#endif
