//! The C library's allocator: the two settings that keep a small daemon small.

/// Keeps all threads on `arenas` heaps (glibc gives each thread its own, up to eight a core). Call before threads exist.
pub fn limit_arenas(arenas: u16) {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt only changes a parameter of the allocator; failure (0) leaves the default, which is correct, too.
    let _ = unsafe { libc::mallopt(libc::M_ARENA_MAX, libc::c_int::from(arenas)) };
    #[cfg(not(target_env = "gnu"))]
    let _ = arenas;
}

/// Gives unused heap pages back to the kernel; worth it after a start-up that parsed and built much.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim is thread-safe and frees only what no allocation uses.
    let _ = unsafe { libc::malloc_trim(0) };
}
