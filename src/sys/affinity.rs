//! Which core a thread runs on, and what the process may use of the machine.

use std::io;

use super::check;

/// Pins the calling thread to one CPU.
pub fn pin_to(cpu: usize) -> io::Result<()> {
    // SAFETY: `cpu_set_t` is a plain bit array, for which all-zero is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    if cpu >= libc::CPU_SETSIZE as usize {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: `cpu` is below CPU_SETSIZE, checked above, so the bit is inside `set`.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: the kernel reads `size_of_val(&set)` bytes from `set`, which lives across the call.
    check(unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) }).map(drop)
}

/// The CPUs this process may run on, in ascending order.
pub fn allowed_cpus() -> Vec<usize> {
    // SAFETY: as in `pin_to`: zero is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes at most `size_of_val(&set)` bytes into `set`, which we own.
    if unsafe { libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) } != 0 {
        return vec![0];
    }
    (0..libc::CPU_SETSIZE as usize)
        // SAFETY: `cpu` is below CPU_SETSIZE by the range.
        .filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) })
        .collect()
}

/// Raises the limit on open files to the hard limit; the limit in force afterwards.
pub fn raise_open_files() -> u64 {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 1024 };
    if soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() { hard } else { soft }
}

/// Raises the limit on memory that sends without a copy may pin: away with it where this process may, to the hard limit
/// elsewhere. Without, a core's sends are copied again as soon as some 8 MiB of all are under way.
pub fn raise_pinned_memory() {
    use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
    if setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY).is_err()
        && let Ok((_, hard)) = getrlimit(Resource::RLIMIT_MEMLOCK)
    {
        // What is refused leaves the limit as it was: the senders find out.
        let _ = setrlimit(Resource::RLIMIT_MEMLOCK, hard, hard);
    }
}

/// CPU time the calling thread has taken so far, in user space and kernel.
pub fn thread_cpu_time() -> std::time::Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec into `time`, which lives across the call.
    let done = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    match done {
        0 => std::time::Duration::new(time.tv_sec as u64, time.tv_nsec as u32),
        _ => std::time::Duration::ZERO,
    }
}

/// How long the calling thread has wanted to run while another had its CPU; zero where the kernel does not say.
pub fn thread_wait_time() -> std::time::Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanoseconds = text.split_whitespace().nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
    std::time::Duration::from_nanos(nanoseconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_goes_by_with_work_only() {
        let before = thread_cpu_time();
        let start = std::time::Instant::now();
        let mut sum = 0u64;
        while thread_cpu_time() - before < std::time::Duration::from_millis(5) {
            sum = std::hint::black_box(sum.wrapping_add(1));
            assert!(start.elapsed().as_secs() < 20, "no CPU time goes by");
        }
        assert!(thread_cpu_time() - before <= start.elapsed() + std::time::Duration::from_millis(1));
    }

    #[test]
    fn waiting_for_a_cpu_is_not_running_on_it() {
        let start = std::time::Instant::now();
        let (waited, ran) = (thread_wait_time(), thread_cpu_time());
        while start.elapsed() < std::time::Duration::from_millis(20) {}
        let both = thread_wait_time() - waited + (thread_cpu_time() - ran);
        let wall = start.elapsed();
        // The kernel brings its account up to date at its ticks.
        assert!(both <= wall + std::time::Duration::from_millis(10), "{both:?} of {wall:?}");
        assert!(both >= wall / 2, "{both:?} of {wall:?}");
    }

    #[test]
    fn a_thread_pinned_to_an_allowed_cpu_may_use_only_that_one() {
        std::thread::spawn(|| {
            let cpu = allowed_cpus()[0];
            pin_to(cpu).unwrap();
            assert_eq!(allowed_cpus(), [cpu]);
        })
        .join()
        .unwrap();
    }
}
