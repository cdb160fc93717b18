//! How fast a window leaves: all of it at once until a block is lost, then in pieces, one a round trip.
//!
//! A client acknowledges whole windows only (RFC 7440 §4), so what a server may do about a full queue on the way is not
//! to send less but to send it slower. A loss halves the piece and a window without one makes it longer by a block per
//! piece, as TCP does (RFC 5681 §3.1), so that a window in pieces is as kind, and as fast, as a window of a piece's
//! length would be; a piece as long as the window is no pacing at all.

use std::time::Duration;

/// A piece is never shorter, if the window is not: any queue holds eight packets, and shorter pieces would make packets
/// lost by chance cost more than they do in small windows.
const PIECE_MIN: u16 = 8;
/// Shortest pause between pieces: a gigabit link needs less than half of it for eight packets of 1500 bytes.
const GAP_MIN: Duration = Duration::from_micros(250);

/// Blocks that leave at once; at most the window.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Piece(u16);

impl Piece {
    /// The whole window.
    pub(super) fn whole(windowsize: u16) -> Self {
        Self(windowsize.max(1))
    }

    pub(super) fn blocks(self) -> u16 {
        self.0
    }

    /// A block was lost on the way.
    pub(super) fn lost(&mut self) {
        // Of a window shorter than the shortest piece, all of it.
        self.0 = (self.0 / 2).max(PIECE_MIN).min(self.0);
    }

    /// Nothing came back at all.
    pub(super) fn silence(&mut self) {
        self.0 = self.0.min(PIECE_MIN);
    }

    /// A whole window arrived.
    pub(super) fn arrived(&mut self, windowsize: u16) {
        // A block for each of its pieces, but no sudden jump: what fits the queue now may just not any more.
        let more = windowsize.div_ceil(self.0).min(self.0.div_ceil(4));
        self.0 = self.0.saturating_add(more).min(windowsize);
    }

    /// Pause between two pieces: the round trip, in which a queue on the way grows and shrinks too.
    pub(super) fn gap(rtt: Option<Duration>) -> Duration {
        rtt.unwrap_or(GAP_MIN).max(GAP_MIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_halve_a_piece_down_to_eight_and_whole_windows_lengthen_it() {
        let mut piece = Piece::whole(64);
        let mut seen = Vec::new();
        for _ in 0..6 {
            piece.lost();
            seen.push(piece.blocks());
        }
        assert_eq!(seen, [32, 16, 8, 8, 8, 8]);
        let mut windows = 0;
        while piece.blocks() < 64 {
            piece.arrived(64);
            windows += 1;
        }
        assert_eq!((piece.blocks(), windows), (64, 23));
        piece.silence();
        assert_eq!(piece.blocks(), 8);
    }

    #[test]
    fn small_windows_are_never_cut() {
        for windowsize in 1..=8 {
            let mut piece = Piece::whole(windowsize);
            piece.lost();
            piece.silence();
            assert_eq!(piece.blocks(), windowsize);
        }
    }
}
