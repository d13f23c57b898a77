//! The memory of this process.

/// Gives memory that was freed, but that the allocator holds, back to the kernel:
/// whole pages in the middle of its arenas too, which it never gives back by
/// itself (`malloc_trim(3)`). Returns at once where the allocator is not glibc's.
///
/// Worth its time, a walk over all that is free, after work that needed far more
/// memory than what it left.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    #[allow(unsafe_code)]
    // SAFETY: it takes no pointer, may be called from any thread at any time, and
    // changes nothing of memory that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}
