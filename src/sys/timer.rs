//! A timer that makes a descriptor readable, for waits that are shorter, or have to be more exact, than the milliseconds
//! of `epoll_wait`.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use super::check;

/// The timer. Watched for edges, it has never to be read: each time it goes off is an edge.
#[derive(Debug)]
pub struct Timer {
    fd: OwnedFd,
}

impl Timer {
    /// One that does not go off.
    ///
    /// # Errors
    /// EMFILE, and what else a new descriptor can meet.
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers.
        let raw = check(unsafe {
            libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_CLOEXEC | libc::TFD_NONBLOCK)
        })?;
        // SAFETY: `raw` is a fresh descriptor that nobody else owns.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(raw) } })
    }

    /// Lets it go off after `wait`, once, and not when it was to before. Zero is as soon as can be.
    ///
    /// # Errors
    /// None that is known: the time and the descriptor are valid.
    pub fn set(&self, wait: Duration) -> io::Result<()> {
        // An all-zero time would switch it off.
        let wait = wait.max(Duration::from_nanos(1));
        let when = libc::itimerspec {
            it_interval: libc::timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: libc::timespec {
                tv_sec: wait.as_secs() as libc::time_t,
                tv_nsec: libc::c_long::from(wait.subsec_nanos()),
            },
        };
        // SAFETY: the kernel reads `when`, borrowed for the call, and is given no place for the old time.
        check(unsafe { libc::timerfd_settime(self.fd.as_raw_fd(), 0, &raw const when, std::ptr::null_mut()) })
            .map(drop)
    }
}

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mio::unix::SourceFd;
    use mio::{Events, Interest, Poll, Token};
    use std::time::Instant;

    #[test]
    fn every_time_it_goes_off_is_an_edge_though_nobody_reads() {
        let mut poll = Poll::new().unwrap();
        let timer = Timer::new().unwrap();
        poll.registry().register(&mut SourceFd(&timer.as_raw_fd()), Token(1), Interest::READABLE).unwrap();
        let mut events = Events::with_capacity(4);
        for wait in [300, 0, 700] {
            let start = Instant::now();
            timer.set(Duration::from_micros(wait)).unwrap();
            poll.poll(&mut events, Some(Duration::from_secs(5))).unwrap();
            assert!(!events.is_empty(), "nothing after {wait} us");
            assert!(start.elapsed() >= Duration::from_micros(wait));
        }
        poll.poll(&mut events, Some(Duration::from_millis(20))).unwrap();
        assert!(events.is_empty(), "once");
    }
}
