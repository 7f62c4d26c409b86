/* Atomic operations that call hook() first, so that a test can run another process's steps, or kill this one, between
 * any two of them. Include it before the library source that is to be hooked; then define hook().
 *
 * Code inside hook() must not be hooked again: the test keeps a flag. The interleavings are those of one memory
 * order; store buffers are tests/model's.
 */
#ifndef UNTORN_TESTS_HOOKS_H
#define UNTORN_TESTS_HOOKS_H

#include "atomics.h"
#include "futex.h" /* before the names change: waking and sleeping stay as they are */

static void hook(void);

#undef shared_load_relaxed
#undef shared_load_acquire
#undef shared_store_relaxed
#undef shared_store_release
#undef shared_swap
#undef shared_add
#undef shared_set
#undef shared_clear
#undef fence_full
#define shared_load_relaxed(word) (hook(), atomic_load_explicit((word), memory_order_relaxed))
#define shared_load_acquire(word) (hook(), atomic_load_explicit((word), memory_order_acquire))
#define shared_store_relaxed(word, value) (hook(), atomic_store_explicit((word), (value), memory_order_relaxed))
#define shared_store_release(word, value) (hook(), atomic_store_explicit((word), (value), memory_order_release))
#define shared_swap(word, value) (hook(), atomic_exchange_explicit((word), (value), memory_order_acq_rel))
#define shared_add(word, value) (hook(), atomic_fetch_add_explicit((word), (value), memory_order_acq_rel))
#define shared_set(word, bits) (hook(), atomic_fetch_or_explicit((word), (bits), memory_order_acq_rel))
#define shared_clear(word, bits) (hook(), atomic_fetch_and_explicit((word), ~(bits), memory_order_acq_rel))
#define fence_full() (hook(), atomic_thread_fence(memory_order_seq_cst))
#define shared_swap_if(word, expected, desired) (hook(), shared_swap_if((word), (expected), (desired)))

#endif
