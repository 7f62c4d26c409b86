/* Frames: see frames.h. */
#include "frames.h"

#include <stdlib.h>
#include <string.h>

struct frame frame_make(enum frame_kind kind, uint64_t session, uint64_t step, uint32_t index, uint64_t offset,
                        uint32_t nbytes)
{
    return (struct frame){FRAME_MAGIC, kind, session, step, offset, index, nbytes};
}

const char *frame_error(const struct frame *frame)
{
    if (frame->magic != FRAME_MAGIC)
        return "the bytes are no frame";
    if (frame->kind < FRAME_ALIVE || frame->kind > FRAME_SUM)
        return "a frame of an unknown kind";
    if (frame->nbytes > FRAME_MAX_NBYTES)
        return "a frame that is too long";
    if (frame->kind == FRAME_ALIVE &&
        (frame->session != 0 || frame->step != 0 || frame->offset != 0 || frame->index != 0 || frame->nbytes != 0))
        return "a sign of life with contents";
    return NULL;
}

/* -- input
 * ---------------------------------------------------------------------------------------------------------- */

struct iovec frame_input_room(struct frame_input *input)
{
    if (input->parked || input->error != NULL)
        return (struct iovec){NULL, 0};
    if (input->start == input->end) {
        input->start = input->end = 0;
        if (input->inside && input->into != NULL && input->left >= FRAME_DIRECT_NBYTES)
            return (struct iovec){input->into, input->left};
    } else if (input->start > 0) { /* less than a header, or what came behind a frame at which it was parked */
        memmove(input->buffer, input->buffer + input->start, input->end - input->start);
        input->end -= input->start;
        input->start = 0;
    }
    return (struct iovec){input->buffer + input->end, FRAME_BUFFER_NBYTES - input->end};
}

static void input_advance(struct frame_input *input, uint32_t nbytes)
{
    input->left -= nbytes;
    if (input->into != NULL)
        input->into += nbytes;
}

static void frame_end(struct frame_input *input, const struct frame_user *user)
{
    const bool taken = input->into != NULL;
    input->inside = false;
    input->into = NULL;
    if (taken)
        user->arrived(user->self, user->peer, &input->frame);
}

/* Begin the frame whose header is in the buffer; false if nothing more can be read now. */
static bool frame_begin(struct frame_input *input, const struct frame_user *user)
{
    uint8_t *into = NULL;
    memcpy(&input->frame, input->buffer + input->start, sizeof input->frame);
    input->error = frame_error(&input->frame);
    if (input->error != NULL)
        return false;
    switch (user->accept(user->self, user->peer, &input->frame, &into, &input->error)) {
    case FRAME_TAKE: break;
    case FRAME_DROP: into = NULL; break;
    case FRAME_PARK: input->parked = true; return false;
    default: return false;
    }
    input->start += sizeof input->frame;
    input->inside = true;
    input->into = into;
    input->left = input->frame.nbytes;
    return true;
}

/* Read what is in the buffer. */
static bool input_parse(struct frame_input *input, const struct frame_user *user)
{
    for (;;) {
        if (!input->inside && (input->end - input->start < sizeof(struct frame) || !frame_begin(input, user)))
            return input->error == NULL;
        const uint32_t there = input->end - input->start, some = there < input->left ? there : input->left;
        if (input->into != NULL && some > 0)
            memcpy(input->into, input->buffer + input->start, some);
        input->start += some;
        input_advance(input, some);
        if (input->left > 0)
            return true;
        frame_end(input, user);
    }
}

bool frame_input_took(struct frame_input *input, size_t nbytes, const struct frame_user *user)
{
    const bool direct = input->inside && input->into != NULL && input->end == 0 && input->left >= FRAME_DIRECT_NBYTES;
    if (direct)
        input_advance(input, (uint32_t)nbytes);
    else
        input->end += (uint32_t)nbytes;
    if (direct && input->left > 0)
        return true;
    if (direct)
        frame_end(input, user);
    return input_parse(input, user);
}

bool frame_input_resume(struct frame_input *input, const struct frame_user *user)
{
    if (!input->parked)
        return input->error == NULL;
    input->parked = false;
    return input_parse(input, user);
}

void frame_input_forget(struct frame_input *input) { input->into = NULL; }

/* -- output
 * --------------------------------------------------------------------------------------------------------- */

bool frame_output_make(struct frame_output *output, uint32_t capacity)
{
    struct frame_out *ring = calloc(capacity, sizeof *ring);
    if (ring == NULL)
        return false;
    for (uint32_t i = 0; i < output->count; i++) /* at most one, the rest of a frame */
        ring[i] = output->ring[(output->first + i) % output->capacity];
    free(output->ring);
    output->ring = ring;
    output->capacity = capacity;
    output->first = 0;
    return true;
}

void frame_output_free(struct frame_output *output)
{
    free(output->ring);
    free(output->memory);
    *output = (struct frame_output){0};
}

bool frame_output_add(struct frame_output *output, struct frame frame, const uint8_t *bytes)
{
    if (output->count == output->capacity)
        return false;
    output->ring[(output->first + output->count++) % output->capacity] = (struct frame_out){frame, bytes};
    return true;
}

int frame_output_pieces(const struct frame_output *output, struct iovec *pieces, int most)
{
    int count = 0;
    for (uint32_t i = 0; i < output->count && count + 2 <= most; i++) {
        struct frame_out *out = &output->ring[(output->first + i) % output->capacity];
        uint64_t sent = i == 0 ? output->sent : 0;
        if (sent < sizeof out->frame)
            pieces[count++] = (struct iovec){(uint8_t *)&out->frame + sent, sizeof out->frame - sent};
        sent = sent < sizeof out->frame ? 0 : sent - sizeof out->frame;
        if (sent < out->frame.nbytes)
            pieces[count++] = (struct iovec){(uint8_t *)(uintptr_t)out->bytes + sent, out->frame.nbytes - sent};
    }
    return count;
}

void frame_output_sent(struct frame_output *output, size_t nbytes)
{
    output->sent += nbytes;
    while (output->count > 0) {
        const uint64_t whole = sizeof(struct frame) + output->ring[output->first].frame.nbytes;
        if (output->sent < whole)
            break;
        output->sent -= whole;
        output->first = (output->first + 1) % output->capacity;
        output->count--;
    }
}

bool frame_output_forget(struct frame_output *output)
{
    const bool begun = output->count > 0 && output->sent > 0;
    output->count = begun;
    if (!begun)
        return true;
    struct frame_out *out = &output->ring[output->first];
    if (out->bytes == output->memory || out->frame.nbytes == 0)
        return true;
    uint8_t *memory = malloc(out->frame.nbytes);
    if (memory == NULL)
        return false;
    memcpy(memory, out->bytes, out->frame.nbytes);
    free(output->memory);
    output->memory = memory;
    out->bytes = memory;
    return true;
}
