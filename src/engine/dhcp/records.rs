//! Leases, and what is remembered of machines, as the journal keeps them.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::keeper::journal::Entry;
use crate::proto::dhcp::{Change, LeaseRecord, LeaseTerm};
use crate::wire::MacAddr;

const KEY_LEASE: u64 = 1 << 56;
const KEY_LOADER: u64 = 2 << 56;
const HELD: u8 = 1;
const QUARANTINED: u8 = 2;
const LEASE_LEN: usize = 28;

/// A change as the journal keeps it:
///
/// ```text
/// 1, address -> state u8, stranger u8, htype u8, hlen u8, hardware (16), until u64 (seconds since 1970)
/// 2, MAC     -> loaders passed over u8
/// ```
/// `both` is one moment on both clocks.
pub(super) fn encode(change: &Change, both: (Instant, SystemTime)) -> Option<Entry> {
    let mut value = [0; LEASE_LEN];
    match change {
        Change::Lease(record) => {
            let key = KEY_LEASE | u64::from(record.ip.to_bits());
            let (state, stranger, until) = match record.term {
                LeaseTerm::Held { until, stranger } => (HELD, stranger, until),
                LeaseTerm::Quarantined { until } => (QUARANTINED, false, until),
                LeaseTerm::Forgotten => return Entry::new(key, &[]),
            };
            value[..4].copy_from_slice(&[state, u8::from(stranger), record.htype, record.hlen]);
            value[4..20].copy_from_slice(&record.hardware);
            let at = both.1 + until.saturating_duration_since(both.0);
            let secs = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            value[20..].copy_from_slice(&secs.to_le_bytes());
            Entry::new(key, &value)
        }
        Change::Loader { mac, pass_over } => {
            let mut key = [0; 8];
            key[2..].copy_from_slice(&mac.0);
            let value = [*pass_over];
            // The first loader is what everybody gets.
            Entry::new(KEY_LOADER | u64::from_be_bytes(key), if *pass_over == 0 { &[] } else { &value })
        }
    }
}

/// Back from the journal; what is none of ours is left out. `both` is one moment on both clocks.
pub(super) fn decode(entry: &Entry, both: (Instant, SystemTime)) -> Option<Change> {
    if entry.key() & !((1 << 48) - 1) == KEY_LOADER {
        let bytes = entry.key().to_be_bytes();
        let mac = MacAddr([bytes[2], bytes[3], bytes[4], bytes[5], bytes[6], bytes[7]]);
        let [pass_over] = *entry.value() else { return None };
        return Some(Change::Loader { mac, pass_over });
    }
    let ip = u32::try_from(entry.key() ^ KEY_LEASE).ok().map(Ipv4Addr::from_bits)?;
    let value: &[u8; LEASE_LEN] = entry.value().try_into().ok()?;
    let [state, stranger, htype, hlen, rest @ ..] = *value;
    let mut hardware = [0; 16];
    hardware.copy_from_slice(&rest[..16]);
    let secs = u64::from_le_bytes(*rest.last_chunk()?);
    let now = both.1.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    // Until the end of that second, whatever part of it was cut off.
    let until = match secs.checked_sub(now) {
        Some(left) if left > 0 => both.0.checked_add(Duration::from_secs(left + 1))?,
        _ => both.0.checked_sub(Duration::from_secs(now.saturating_sub(secs))).unwrap_or(both.0),
    };
    let term = match state {
        HELD => LeaseTerm::Held { until, stranger: stranger != 0 },
        QUARANTINED => LeaseTerm::Quarantined { until },
        _ => return None,
    };
    Some(Change::Lease(LeaseRecord { ip, htype, hlen: hlen.min(16), hardware, term }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_read_from_the_journal_as_it_was_written() {
        let epoch = (Instant::now(), SystemTime::now());
        let record = |term| LeaseRecord {
            ip: Ipv4Addr::new(10, 77, 0, 9),
            htype: 1,
            hlen: 6,
            hardware: *b"\x52\x54\0\x77\0\x01\0\0\0\0\0\0\0\0\0\0",
            term,
        };
        let until = epoch.0 + Duration::from_secs(7200);
        for term in [
            LeaseTerm::Held { until, stranger: true },
            LeaseTerm::Held { until, stranger: false },
            LeaseTerm::Quarantined { until },
        ] {
            let entry = encode(&Change::Lease(record(term)), epoch).unwrap();
            let Some(Change::Lease(back)) = decode(&entry, epoch) else { panic!("{entry:?}") };
            let end = |term| match term {
                LeaseTerm::Held { until, .. } | LeaseTerm::Quarantined { until } => until,
                LeaseTerm::Forgotten => panic!("{term:?}"),
            };
            let longer = end(back.term).saturating_duration_since(until);
            assert!(end(back.term) >= until && longer <= Duration::from_secs(1), "never shorter");
            assert_eq!(LeaseRecord { term, ..back }, record(term));
        }
        let gone = encode(&Change::Lease(record(LeaseTerm::Forgotten)), epoch).unwrap();
        assert!(gone.value().is_empty());
        let mac = MacAddr([0x52, 0x54, 0, 0x77, 0, 0xff]);
        let loader = Change::Loader { mac, pass_over: 1 };
        assert_eq!(decode(&encode(&loader, epoch).unwrap(), epoch), Some(loader));
    }
}
