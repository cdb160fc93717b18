//! Block numbers: 16 bits on the wire, as many as it takes here.

/// How numbers go on after 65535: to 0, as almost every client expects, or to 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Numbering {
    to_one: bool,
}

impl Numbering {
    pub(super) fn new(rollover_to: u16) -> Self {
        Self { to_one: rollover_to == 1 }
    }

    /// The number on the wire of block `count` (blocks count from 1; 0 is the OACK's).
    pub(super) fn wire(self, count: u64) -> u16 {
        if self.to_one && count > 0 { ((count - 1) % 65535 + 1) as u16 } else { count as u16 }
    }

    /// How many blocks after `count` the one with number `wire` is, counted forward; numbers of the past come out
    /// large.
    pub(super) fn ahead(self, count: u64, wire: u16) -> u64 {
        let here = self.wire(count);
        if !self.to_one {
            return u64::from(wire.wrapping_sub(here));
        }
        match (here, wire) {
            (here, wire) if wire >= here => u64::from(wire - here),
            // Number 0 occurs once, before the first block.
            (_, 0) => u64::from(u16::MAX),
            (here, wire) => u64::from(wire) + 65535 - u64::from(here),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_65535_comes_0_or_1() {
        assert_eq!([65534, 65535, 65536, 65537].map(|n| Numbering::new(0).wire(n)), [65534, 65535, 0, 1]);
        assert_eq!([65534, 65535, 65536, 65537].map(|n| Numbering::new(1).wire(n)), [65534, 65535, 1, 2]);
    }

    #[test]
    fn a_number_finds_its_block_over_every_rollover() {
        for rollover_to in [0, 1] {
            let numbering = Numbering::new(rollover_to);
            for count in [0, 1, 100, 65500, 65534, 65535, 65536, 65537, 131_069, 131_070, 131_071, 1 << 33] {
                for ahead in 0..200 {
                    assert_eq!(
                        numbering.ahead(count, numbering.wire(count + ahead)),
                        ahead,
                        "{count} {ahead}"
                    );
                }
                for behind in 1..200u64.min(count) {
                    let ahead = numbering.ahead(count, numbering.wire(count - behind));
                    assert!(ahead > 60_000, "{count} {behind} {ahead}");
                }
            }
        }
    }
}
