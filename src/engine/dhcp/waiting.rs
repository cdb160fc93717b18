//! DISCOVERs that came by UDP when there was no time for them.

use std::collections::VecDeque;
use std::time::Instant;

use super::{Came, FRAME_LEN};

/// Relayed DISCOVERs that wait; at 200,000 a second they wait 40 ms.
const WAITING_MAX: usize = 8192;

/// DISCOVERs that wait, the oldest first, in a ring of places that is made when it is first needed.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    pub(super) queue: VecDeque<(Came, Instant, usize)>,
    places: Box<[u8]>,
    next: usize,
}

impl Waiting {
    /// False when there is no room.
    pub(super) fn push(&mut self, came: &Came, now: Instant, bytes: &[u8]) -> bool {
        if self.queue.len() == WAITING_MAX || bytes.len() > FRAME_LEN {
            return false;
        }
        if self.places.is_empty() {
            self.places = vec![0; WAITING_MAX * FRAME_LEN].into_boxed_slice();
        }
        let start = self.next * FRAME_LEN;
        self.places[start..start + bytes.len()].copy_from_slice(bytes);
        self.next = (self.next + 1) % WAITING_MAX;
        self.queue.push_back((*came, now, bytes.len()));
        true
    }

    /// The oldest, its bytes copied to `bytes`.
    pub(super) fn pop(&mut self, bytes: &mut [u8; FRAME_LEN]) -> Option<(Came, Instant, usize)> {
        let place = (self.next + WAITING_MAX - self.queue.len()) % WAITING_MAX;
        let (came, since, len) = self.queue.pop_front()?;
        let start = place * FRAME_LEN;
        bytes[..len].copy_from_slice(&self.places[start..start + len]);
        Some((came, since, len))
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddrV4};

    use super::*;
    use crate::proto::dhcp::ServerPort;

    #[test]
    fn discovers_wait_in_order_and_the_newest_is_refused() {
        let mut waiting = Waiting::default();
        let came = Came {
            interface: 0,
            raw: None,
            port: ServerPort::Dhcp,
            src: SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68),
            src_mac: None,
            dst: Ipv4Addr::BROADCAST,
            local: Ipv4Addr::UNSPECIFIED,
        };
        let now = Instant::now();
        let mut bytes = [0; FRAME_LEN];
        let (mut pushed, mut popped) = (0u32, 0u32);
        for round in 1..40u32 {
            while pushed - popped < WAITING_MAX as u32 {
                assert!(waiting.push(&came, now, &pushed.to_be_bytes()));
                pushed += 1;
            }
            assert!(!waiting.push(&came, now, &[]));
            for _ in 0..round * 200 {
                let (_, _, len) = waiting.pop(&mut bytes).unwrap();
                assert_eq!(bytes[..len], popped.to_be_bytes());
                popped += 1;
            }
        }
    }
}
