//! SHA-1 (RFC 3174), because WIM files are made of it. It protects against accidents, not against anybody; our own
//! whole-file hash is BLAKE3.

/// A digest under way.
#[derive(Clone, Debug)]
pub(crate) struct Sha1 {
    state: [u32; 5],
    /// Bytes of an unfinished block.
    block: [u8; 64],
    block_len: usize,
    /// Bytes taken in so far.
    total: u64,
}

impl Sha1 {
    /// Nothing taken in yet.
    pub(crate) fn new() -> Self {
        let state = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476, 0xc3d2_e1f0];
        Self { state, block: [0; 64], block_len: 0, total: 0 }
    }

    /// The digest of all of `bytes`.
    pub(crate) fn digest(bytes: &[u8]) -> [u8; 20] {
        let mut sha1 = Self::new();
        sha1.update(bytes);
        sha1.finish()
    }

    /// Takes in more.
    pub(crate) fn update(&mut self, mut bytes: &[u8]) {
        self.total = self.total.wrapping_add(bytes.len() as u64);
        if self.block_len > 0 {
            let room = self.block.len() - self.block_len;
            let (head, rest) = bytes.split_at(room.min(bytes.len()));
            for (to, from) in self.block.iter_mut().skip(self.block_len).zip(head) {
                *to = *from;
            }
            self.block_len += head.len();
            bytes = rest;
            if self.block_len < self.block.len() {
                return;
            }
            compress(&mut self.state, &self.block);
            self.block_len = 0;
        }
        let (blocks, rest) = bytes.as_chunks::<64>();
        for block in blocks {
            compress(&mut self.state, block);
        }
        for (to, from) in self.block.iter_mut().zip(rest) {
            *to = *from;
        }
        self.block_len = rest.len();
    }

    /// Pads and gives the digest.
    pub(crate) fn finish(mut self) -> [u8; 20] {
        let bits = self.total.wrapping_mul(8);
        self.update(&[0x80]);
        while self.block_len != 56 {
            self.update(&[0]);
        }
        self.update(&bits.to_be_bytes());
        let mut digest = [0; 20];
        for (to, from) in digest.iter_mut().zip(self.state.into_iter().flat_map(u32::to_be_bytes)) {
            *to = from;
        }
        digest
    }
}

/// One block (RFC 3174 §6.2, method 2: a circular schedule of sixteen words).
fn compress(state: &mut [u32; 5], block: &[u8; 64]) {
    let mut w = [0u32; 16];
    let (words, _) = block.as_chunks::<4>();
    for (to, from) in w.iter_mut().zip(words) {
        *to = u32::from_be_bytes(*from);
    }
    let [mut a, mut b, mut c, mut d, mut e] = *state;
    macro_rules! rounds {
        ($range:expr, $constant:expr, $f:expr) => {
            for t in $range {
                // Masked, so no index leaves the schedule.
                let word = if t < 16 {
                    w[t & 15]
                } else {
                    (w[(t + 13) & 15] ^ w[(t + 8) & 15] ^ w[(t + 2) & 15] ^ w[t & 15]).rotate_left(1)
                };
                w[t & 15] = word;
                let next = a
                    .rotate_left(5)
                    .wrapping_add($f)
                    .wrapping_add(e)
                    .wrapping_add(word)
                    .wrapping_add($constant);
                e = d;
                d = c;
                c = b.rotate_left(30);
                b = a;
                a = next;
            }
        };
    }
    rounds!(0..20usize, 0x5a82_7999, (b & c) | (!b & d));
    rounds!(20..40usize, 0x6ed9_eba1, b ^ c ^ d);
    rounds!(40..60usize, 0x8f1b_bcdc, (b & c) | (b & d) | (c & d));
    rounds!(60..80usize, 0xca62_c1d6, b ^ c ^ d);
    for (to, from) in state.iter_mut().zip([a, b, c, d, e]) {
        *to = to.wrapping_add(from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(digest: [u8; 20]) -> String {
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn the_vectors_of_rfc_3174_hold() {
        // RFC 3174 §7.3, TEST1 to TEST4.
        assert_eq!(hex(Sha1::digest(b"abc")), "a9993e364706816aba3e25717850c26c9cd0d89d");
        assert_eq!(
            hex(Sha1::digest(b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq")),
            "84983e441c3bd26ebaae4aa1f95129e5e54670f1"
        );
        assert_eq!(hex(Sha1::digest(&[b'a'; 1_000_000])), "34aa973cd4c4daa4f61eeb2bdbad27316534016f");
        let eighty = b"0123456701234567012345670123456701234567012345670123456701234567".repeat(10);
        assert_eq!(hex(Sha1::digest(&eighty)), "dea356a2cddd90c7a7ecedc5ebb563934f460452");
        assert_eq!(hex(Sha1::digest(b"")), "da39a3ee5e6b4b0d3255bfef95601890afd80709");
    }

    #[test]
    fn how_the_bytes_are_cut_does_not_matter() {
        let bytes: Vec<u8> = (0..300u32).map(|n| n as u8).collect();
        let whole = Sha1::digest(&bytes);
        for step in 1..130 {
            let mut sha1 = Sha1::new();
            bytes.chunks(step).for_each(|chunk| sha1.update(chunk));
            assert_eq!(sha1.finish(), whole, "{step}");
        }
    }
}
