//! Messages at random, read by us and by dhcproto: where they differ, one of two known reasons must be there.

use dhcproto::v4::{self, DhcpOption, OptionCode};
use dhcproto::{Decodable, Decoder};

use super::*;

/// Messages of an ordinary run; with `LAB_ALL=1` a million.
const ORDINARY: u64 = 40_000;
const ALL: u64 = 1_000_000;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

/// A message of any shape: mostly sound, sometimes cut, changed or padded.
fn message(random: &mut Random) -> Vec<u8> {
    let mut bytes = vec![1 + random.below(2) as u8, 1, 6, random.below(17) as u8];
    bytes.extend(random.bytes(24));
    bytes.extend([0x52, 0x54, 0]);
    bytes.extend(random.bytes(3));
    bytes.resize(44, 0);
    for len in [64, 128] {
        let filled = if random.below(4) == 0 { random.below(len) as usize } else { 0 };
        let start = bytes.len();
        bytes.extend((0..filled).map(|_| b'a' + random.below(26) as u8));
        bytes.resize(start + len as usize, 0);
    }
    bytes.extend([0x63, 0x82, 0x53, 0x63]);
    const CODES: [u8; 26] = [
        1, 3, 6, 12, 15, 17, 28, 43, 50, 51, 53, 54, 55, 57, 58, 59, 60, 61, 66, 67, 77, 82, 93, 94, 97, 175,
    ];
    for _ in 0..random.below(16) {
        let code = if random.below(8) == 0 { random.next() as u8 } else { CODES[random.below(26) as usize] };
        if random.below(12) == 0 {
            bytes.push(0);
        }
        let len = match (code, random.below(50)) {
            (_, 0) => random.below(256) as usize,
            (53, _) => 1,
            (57 | 93, _) => 2,
            (1 | 28 | 50 | 51 | 54 | 58 | 59, _) => 4,
            (3 | 6, _) => 4 * (1 + random.below(3) as usize),
            (94, _) => 3,
            (97, _) => 17,
            _ => random.below(40) as usize,
        };
        bytes.extend([code, len as u8]);
        match (code, len) {
            (53, 1) => bytes.push(1 + random.below(8) as u8),
            // Texts, and sub-options of one length: a wrong shape is seldom enough as it is.
            (12 | 15 | 17 | 66 | 67, _) => bytes.extend((0..len).map(|_| b'a' + random.below(26) as u8)),
            (82, 2..) => {
                bytes.extend([1 + random.below(2) as u8, len as u8 - 2]);
                bytes.extend(random.bytes(len - 2));
            }
            _ => bytes.extend(random.bytes(len)),
        }
    }
    bytes.push(255);
    match random.below(8) {
        0 => bytes.truncate(random.below(bytes.len() as u64 + 1) as usize),
        1 => {
            let at = random.below(bytes.len() as u64) as usize;
            bytes[at] = random.next() as u8;
        }
        2 => bytes.resize(bytes.len() + random.below(200) as usize, 0),
        _ => {}
    }
    bytes
}

#[derive(Debug, Default)]
struct Tally {
    both: u64,
    neither: u64,
    /// We read it, they do not: a body they want shaped (an address list of three bytes), or a text that is no UTF-8.
    ours_only: u64,
    /// They read it, we do not: an option that runs past the end ends their list; `op` of neither kind.
    theirs_only: u64,
    /// A body of a shape they do not like ends their list; what stands before it is compared.
    stopped: u64,
    /// Their parser panicked.
    panicked: u64,
    /// Options compared one by one.
    options: u64,
}

#[test]
fn another_implementation_reads_generated_messages_as_we_do() {
    let count = if std::env::var_os("LAB_ALL").is_some() { ALL } else { ORDINARY };
    let mut random = Random(0x0dd5_eed5);
    let mut tally = Tally::default();
    for round in 0..count {
        let bytes = message(&mut random);
        // Its parser panics at a hardware address of more than 16 bytes, and at an option 94 that is not three.
        if bytes.get(2).is_some_and(|hlen| *hlen > 16) {
            assert!(Message::parse(&bytes).is_err());
            continue;
        }
        if has_odd_interface_id(&bytes) {
            let _ = Message::parse(&bytes);
            continue;
        }
        compare(&bytes, &mut tally).unwrap_or_else(|what| panic!("message {round}: {what}\n{bytes:02x?}"));
    }
    // Neither side may simply refuse everything.
    assert!(tally.both > count / 2 && tally.options > count / 2 && tally.stopped < count / 2, "{tally:?}");
    assert!(tally.panicked < count / 50, "{tally:?}");
}

/// An option 94 of another length than three, or several (which they join), wherever their walk would come by.
fn has_odd_interface_id(bytes: &[u8]) -> bool {
    let mut rest = bytes.get(240..).unwrap_or_default();
    let mut seen = false;
    while let [code, tail @ ..] = rest {
        if *code == 94 && (std::mem::replace(&mut seen, true) || tail.first() != Some(&3)) {
            return true;
        }
        rest = match (code, tail) {
            (0, tail) => tail,
            (_, [len, tail @ ..]) => tail.get(usize::from(*len)..).unwrap_or_default(),
            (_, []) => tail,
        };
    }
    false
}

fn compare(bytes: &[u8], tally: &mut Tally) -> Result<(), String> {
    // It asserts the length of a few options.
    let theirs = std::panic::catch_unwind(|| v4::Message::decode(&mut Decoder::new(bytes)));
    let Ok(theirs) = theirs else {
        tally.panicked += 1;
        return Ok(());
    };
    let (ours, theirs) = match (Message::parse(bytes), theirs) {
        (Ok(ours), Ok(theirs)) => (ours, theirs),
        (Err(_), Err(_)) => {
            tally.neither += 1;
            return Ok(());
        }
        (Ok(_), Err(_)) => {
            tally.ours_only += 1;
            return Ok(());
        }
        (Err(error), Ok(_)) => {
            tally.theirs_only += 1;
            use crate::wire::dhcp::Error;
            return match error {
                Error::OptionOverrun(_) | Error::BadOp(_) | Error::BadCookie => Ok(()),
                error => Err(format!("they read it, we say: {error}")),
            };
        }
    };
    tally.both += 1;
    let same = |name: &str, ours: &dyn std::fmt::Debug, theirs: &dyn std::fmt::Debug| {
        let (ours, theirs) = (format!("{ours:?}"), format!("{theirs:?}"));
        if ours == theirs { Ok(()) } else { Err(format!("{name}: {ours}, they say {theirs}")) }
    };
    same("xid", &ours.xid(), &theirs.xid())?;
    same("secs", &ours.secs(), &theirs.secs())?;
    same("flags", &ours.flags(), &u16::from(theirs.flags()))?;
    same("ciaddr", &ours.ciaddr(), &theirs.ciaddr())?;
    same("yiaddr", &ours.yiaddr(), &theirs.yiaddr())?;
    same("siaddr", &ours.siaddr(), &theirs.siaddr())?;
    same("giaddr", &ours.giaddr(), &theirs.giaddr())?;
    same("chaddr", &&ours.chaddr()[..usize::from(ours.hlen())], &theirs.chaddr())?;
    // They join what is split after RFC 3396; where a code stands once there is nothing to join.
    let codes: Vec<u8> = ours.options().map(|(code, _)| code).collect();
    let once = |code: u8| codes.iter().filter(|other| **other == code).count() == 1;
    let opts = theirs.opts();
    let distinct: std::collections::BTreeSet<u8> = codes.iter().copied().collect();
    let stopped = opts.iter().count() < distinct.len();
    tally.stopped += u64::from(stopped);
    for (code, wanted) in [
        (code::REQUESTED_ADDRESS, OptionCode::RequestedIpAddress),
        (code::SERVER_ID, OptionCode::ServerIdentifier),
        (code::MAX_SIZE, OptionCode::MaxMessageSize),
        (code::MESSAGE_TYPE, OptionCode::MessageType),
        (code::VENDOR_CLASS, OptionCode::ClassIdentifier),
        (code::CLIENT_ID, OptionCode::ClientIdentifier),
    ] {
        // A body of the wrong shape is no such option to them.
        let shape = match code {
            code::REQUESTED_ADDRESS | code::SERVER_ID => Some(4),
            code::MAX_SIZE => Some(2),
            code::MESSAGE_TYPE => Some(1),
            _ => None,
        };
        if !once(code) || shape.is_some_and(|len| ours.option(code).is_some_and(|body| body.len() != len)) {
            continue;
        }
        tally.options += u64::from(opts.get(wanted).is_some());
        match opts.get(wanted) {
            Some(DhcpOption::RequestedIpAddress(ip)) => same("50", &ours.option_ipv4(50), &Some(ip))?,
            Some(DhcpOption::ServerIdentifier(ip)) => same("54", &ours.server_id(), &Some(ip))?,
            Some(DhcpOption::MaxMessageSize(size)) => {
                same("57", &ours.option_array(57).map(u16::from_be_bytes), &Some(size))?;
            }
            Some(DhcpOption::MessageType(kind)) => {
                same("53", &ours.message_type().map(MessageType::code), &Some(u8::from(*kind)))?;
            }
            Some(DhcpOption::ClassIdentifier(bytes)) => {
                same("60", &ours.option(60), &Some(bytes.as_slice()))?
            }
            Some(DhcpOption::ClientIdentifier(bytes)) => {
                same("61", &ours.option(61), &Some(bytes.as_slice()))?
            }
            Some(other) => return Err(format!("{code}: they say {other:?}")),
            None if stopped => {}
            None => return Err(format!("{code} is not there for them")),
        }
    }
    Ok(())
}
