//! Memory and the order in which threads see it; nothing goes in or out.

use std::ptr::NonNull;
use std::sync::OnceLock;

/// Whether [`barrier_everywhere`] works here; asked of the kernel once.
pub fn has_barrier_everywhere() -> bool {
    static REGISTERED: OnceLock<bool> = OnceLock::new();
    *REGISTERED.get_or_init(|| membarrier(libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED))
}

/// Makes every running thread of this process execute a full memory barrier before this returns (membarrier(2),
/// private expedited): the other half of a fence that all the other threads are spared. False when it did not
/// happen, which after [`has_barrier_everywhere`] is for want of memory only.
pub fn barrier_everywhere() -> bool {
    membarrier(libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED)
}

fn membarrier(command: libc::c_int) -> bool {
    // SAFETY: membarrier takes plain numbers and touches no memory of ours.
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) == 0 }
}

/// Asks for huge pages for memory that is to be read at random. Advice: where there are none nothing changes.
pub fn prefer_huge_pages(start: NonNull<u8>, len: usize) {
    // SAFETY: MADV_HUGEPAGE changes how a range is mapped and never what is in it; a range that is none is refused.
    let _ = unsafe { libc::madvise(start.as_ptr().cast(), len, libc::MADV_HUGEPAGE) };
}

/// Begins to bring a value nearer to this core that is soon to be looked at. Advice, which costs nothing to be wrong.
pub fn prefetch<T: ?Sized>(value: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch never faults and changes nothing but caches; the reference is valid besides.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(value).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_of_today_has_the_barrier() {
        assert!(has_barrier_everywhere() && barrier_everywhere());
    }
}
