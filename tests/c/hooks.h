/* Atomic operations that call hook() first, so that a test can run another process's steps, or kill this one, between
 * any two of them. Include it before the library source that is to be hooked; then define hook().
 *
 * What runs inside hook() must not be hooked again: the test keeps a flag. The interleavings are those of one memory
 * order; store buffers are tests/model's.
 */
#ifndef UNTORN_TESTS_HOOKS_H
#define UNTORN_TESTS_HOOKS_H

#include "atomics.h"
#include "futex.h" /* before the names change: waking and sleeping stay as they are */

static void hook(void);

#undef load_relaxed
#undef load_acquire
#undef store_relaxed
#undef store_release
#undef swap
#undef add
#undef fence_full
#define load_relaxed(word) (hook(), atomic_load_explicit((word), memory_order_relaxed))
#define load_acquire(word) (hook(), atomic_load_explicit((word), memory_order_acquire))
#define store_relaxed(word, value) (hook(), atomic_store_explicit((word), (value), memory_order_relaxed))
#define store_release(word, value) (hook(), atomic_store_explicit((word), (value), memory_order_release))
#define swap(word, value) (hook(), atomic_exchange_explicit((word), (value), memory_order_acq_rel))
#define add(word, value) (hook(), atomic_fetch_add_explicit((word), (value), memory_order_acq_rel))
#define fence_full() (hook(), atomic_thread_fence(memory_order_seq_cst))
#define swap_if(word, expected, desired) (hook(), swap_if((word), (expected), (desired)))

#endif
