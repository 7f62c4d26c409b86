/* The one place where memory orders are chosen.
 *
 * Every shared word is touched through these names and through no others, so that a reader can find each order's
 * partner by searching for the name, and a checker can swap them all in one place. x86 would forgive most mistakes
 * here; aarch64 does not, so nothing relies on the processor's own ordering.
 *
 *   load_acquire   pairs with   store_release, swap_if and swap_if_u32 (on success), swap
 *   fence_full     pairs with   fence_full: of two processes that each store, fence and then load the other's word,
 *                               at least one sees the other's store (Dekker's argument)
 *   load_relaxed / store_relaxed: words with a single writer, read by that writer, or ordered by a fence beside them
 */
#ifndef UNTORN_ATOMICS_H
#define UNTORN_ATOMICS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

typedef _Atomic uint32_t shared_u32;
typedef _Atomic uint64_t shared_u64;

_Static_assert(sizeof(shared_u32) == 4 && sizeof(shared_u64) == 8, "shared words have no hidden lock");
_Static_assert(ATOMIC_INT_LOCK_FREE == 2 && ATOMIC_LLONG_LOCK_FREE == 2,
               "a lock inside an atomic would be left locked by a killed process");

#define load_relaxed(word) atomic_load_explicit((word), memory_order_relaxed)
#define load_acquire(word) atomic_load_explicit((word), memory_order_acquire)
#define store_relaxed(word, value) atomic_store_explicit((word), (value), memory_order_relaxed)
#define store_release(word, value) atomic_store_explicit((word), (value), memory_order_release)
#define swap(word, value) atomic_exchange_explicit((word), (value), memory_order_acq_rel)
#define add(word, value) atomic_fetch_add_explicit((word), (value), memory_order_acq_rel)
#define fence_full() atomic_thread_fence(memory_order_seq_cst)

/* Replace `expected` by `desired`; false, changing nothing, if the word holds something else. */
static inline bool swap_if(shared_u64 *word, uint64_t expected, uint64_t desired)
{
    return atomic_compare_exchange_strong_explicit(word, &expected, desired, memory_order_acq_rel,
                                                   memory_order_acquire);
}

/* The same for a word of 32 bits. */
static inline bool swap_if_u32(shared_u32 *word, uint32_t expected, uint32_t desired)
{
    return atomic_compare_exchange_strong_explicit(word, &expected, desired, memory_order_acq_rel,
                                                   memory_order_acquire);
}

/* Tell the processor that this is a spin loop. */
static inline void spin_hint(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("isb" ::: "memory");
#endif
}

#endif
