//! An interface taken whole: every frame that arrives on it in, any frame out, whatever the protocol. For the bench's
//! impaired wire.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use super::{SysError, check, check_len, set_int};

/// linux/virtio_net.h `struct virtio_net_hdr`, which stands before every frame here: it carries checksums that are not
/// written yet and segments that are not cut yet from one interface to the other.
pub const VNET_LEN: usize = 10;
/// The longest frame segmentation offload makes, with its Ethernet header.
const FRAME_LEN_MAX: usize = 65_536 + 64;
/// linux/if_packet.h.
const PACKET_VNET_HDR: libc::c_int = 15;
const PACKET_IGNORE_OUTGOING: libc::c_int = 23;
const PACKET_QDISC_BYPASS: libc::c_int = 20;
/// Receive buffer asked for: a window of several clients while the reader is busy.
const RECV_BUFFER: libc::c_int = 32 << 20;

/// One end of a wire.
#[derive(Debug)]
pub struct Tap {
    fd: OwnedFd,
    scratch: Vec<u8>,
}

impl Tap {
    /// Opens interface `name` of this network namespace. Needs CAP_NET_RAW.
    pub fn open(name: &str) -> Result<Self, SysError> {
        let what = |step: &str| format!("open packet socket on {name}{step}");
        let index = nix::net::if_::if_nametoindex(name).map_err(|e| SysError::new(what(""), e.into()))?;
        // SAFETY: no pointers. Protocol 0 keeps the socket silent until `bind` below names one.
        let raw = check(unsafe {
            libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0)
        })
        .map_err(|e| SysError::new(what(""), e))?;
        // SAFETY: `raw` is a fresh descriptor that nobody else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        for (option, step) in
            [(PACKET_VNET_HDR, ": vnet header"), (PACKET_IGNORE_OUTGOING, ": ignore outgoing")]
        {
            set_int(raw, libc::SOL_PACKET, option, 1).map_err(|e| SysError::new(what(step), e))?;
        }
        // Both only make it faster.
        let _ = set_int(raw, libc::SOL_PACKET, PACKET_QDISC_BYPASS, 1);
        let _ = set_int(raw, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, RECV_BUFFER);
        // SAFETY: `sockaddr_ll` is plain old data; all-zero is valid.
        let mut addr: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        addr.sll_family = libc::AF_PACKET as u16;
        addr.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        addr.sll_ifindex = index as i32;
        // SAFETY: the kernel reads `size_of::<sockaddr_ll>()` bytes from `addr`, which lives across the call.
        check(unsafe {
            libc::bind(raw, (&raw const addr).cast(), size_of::<libc::sockaddr_ll>() as libc::socklen_t)
        })
        .map_err(|e| SysError::new(what(": bind"), e))?;
        Ok(Self { fd, scratch: vec![0; VNET_LEN + FRAME_LEN_MAX] })
    }

    /// One frame with its [`VNET_LEN`] bytes before it into `frame`, replacing what is there; false when there is none.
    pub fn recv(&mut self, frame: &mut Vec<u8>) -> io::Result<bool> {
        // SAFETY: the kernel writes at most `scratch.len()` bytes into `scratch`, borrowed for the call.
        let received = check_len(unsafe {
            libc::recv(self.fd.as_raw_fd(), self.scratch.as_mut_ptr().cast(), self.scratch.len(), 0)
        });
        match received {
            Ok(len) if len > VNET_LEN => {
                frame.clear();
                frame.extend_from_slice(&self.scratch[..len]);
                Ok(true)
            }
            Ok(_) => Ok(false),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Sends what [`Tap::recv`] of another one gave.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        // SAFETY: the kernel reads `frame.len()` bytes from `frame`, borrowed for the call.
        check_len(unsafe { libc::send(self.fd.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) }).map(drop)
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// Lets the calling thread's waits end when they are due and not up to 50 µs later, which is the kernel's habit.
pub fn wait_exactly() {
    // SAFETY: no pointers; the kernel takes the slack in nanoseconds for the calling thread.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1 as libc::c_ulong) };
}

/// Waits until one of them has a frame, or for `patience`, to the microsecond: a millisecond's grain would be the delay
/// of a whole LAN. A signal ends it early.
pub fn wait_readable(taps: &[Tap; 2], patience: Duration) -> io::Result<()> {
    let mut fds = [0, 1].map(|side: usize| libc::pollfd {
        fd: taps[side].as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    });
    let time = libc::timespec {
        tv_sec: patience.as_secs() as libc::time_t,
        tv_nsec: patience.subsec_nanos() as libc::c_long,
    };
    // SAFETY: the kernel reads and writes two `pollfd` in `fds` and reads `time`, all of which live across the call; a
    // null signal mask leaves the mask alone.
    match check(unsafe { libc::ppoll(fds.as_mut_ptr(), 2, &raw const time, std::ptr::null()) }) {
        Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
        _ => Ok(()),
    }
}
