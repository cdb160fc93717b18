//! Range sets (RFC 9110 §14.1, §14.2): which bytes of a file a `Range` field asks for.

use super::decimal;

/// The most parts one answer has. Beyond it the set is absurd and the whole file is the answer.
pub const RANGES_MAX: usize = 16;

/// The most ranges read from one field before coalescing.
const ASKED_MAX: usize = 64;
/// Ranges closer than this are one part: the head of a part costs about as much as the bytes between
/// (RFC 9110 §15.3.7.2 allows it).
const GAP_MAX: u64 = 80;

/// Some bytes of a file; never empty.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ByteRange {
    /// First byte.
    pub first: u64,
    /// Bytes.
    pub len: u64,
}

impl ByteRange {
    /// The last byte, inclusive.
    pub fn last(self) -> u64 {
        self.first + self.len.saturating_sub(1)
    }
}

/// Two to [`RANGES_MAX`] ranges in the order in which they were asked for, apart from each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RangeList {
    ranges: [ByteRange; RANGES_MAX],
    count: usize,
}

impl RangeList {
    /// The ranges.
    pub fn as_slice(&self) -> &[ByteRange] {
        self.ranges.get(..self.count).unwrap_or_default()
    }
}

/// What a `Range` field comes to for a file of known length.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(clippy::large_enum_variant, reason = "lives on the stack for one answer; a box would allocate")]
pub enum Selected {
    /// Ignore the field: another unit, malformed, an absurd number of ranges, or an empty file.
    Whole,
    /// Well-formed, and no range has a byte in the file.
    Unsatisfiable,
    /// One part.
    One(ByteRange),
    /// Several parts.
    Many(RangeList),
}

/// Resolves the value of a `Range` field against a file of `len` bytes.
///
/// A set with one malformed range is malformed as a whole and ignored, which RFC 9110 §14.2 allows; ranges
/// outside the file are left out; overlapping and neighbouring ones become one. Numbers beyond 64 bits are read
/// as the largest there is.
pub fn select_ranges(value: &str, len: u64) -> Selected {
    let Some((unit, set)) = value.split_once('=') else { return Selected::Whole };
    // Unit names are case-insensitive (RFC 9110 §14.1).
    if !unit.eq_ignore_ascii_case("bytes") || len == 0 {
        return Selected::Whole;
    }
    if !set.contains(',') {
        return match resolve(set.trim(), len) {
            None => Selected::Whole,
            Some(None) => Selected::Unsatisfiable,
            Some(Some(range)) => Selected::One(range),
        };
    }
    select_many(set, len)
}

/// A range with its place in the request.
#[derive(Clone, Copy, Default)]
struct Asked {
    range: ByteRange,
    order: usize,
}

fn select_many(set: &str, len: u64) -> Selected {
    let mut asked = [Asked::default(); ASKED_MAX];
    let mut count = 0;
    let mut any = false;
    for member in set.split(',').map(str::trim).filter(|member| !member.is_empty()) {
        any = true;
        match resolve(member, len) {
            None => return Selected::Whole,
            Some(None) => {}
            Some(Some(range)) => {
                let Some(slot) = asked.get_mut(count) else { return Selected::Whole };
                *slot = Asked { range, order: count };
                count += 1;
            }
        }
    }
    if !any {
        return Selected::Whole;
    }
    let asked = asked.get_mut(..count).unwrap_or_default();
    asked.sort_unstable_by_key(|asked| asked.range.first);
    let kept = coalesce(asked);
    let asked = asked.get_mut(..kept).unwrap_or_default();
    asked.sort_unstable_by_key(|asked| asked.order);
    match asked {
        [] => Selected::Unsatisfiable,
        [only] => Selected::One(only.range),
        several => {
            let mut list = RangeList { ranges: [ByteRange::default(); RANGES_MAX], count: several.len() };
            if several.len() > RANGES_MAX {
                return Selected::Whole;
            }
            for (slot, asked) in list.ranges.iter_mut().zip(several.iter()) {
                *slot = asked.range;
            }
            Selected::Many(list)
        }
    }
}

/// Joins neighbours in a list sorted by first byte, in place; how many are left at its front.
fn coalesce(asked: &mut [Asked]) -> usize {
    let mut kept: usize = 0;
    for at in 0..asked.len() {
        let Some(&next) = asked.get(at) else { break };
        let before = kept.checked_sub(1).and_then(|last| asked.get_mut(last));
        match before {
            Some(before) if next.range.first <= before.range.last().saturating_add(GAP_MAX) => {
                let last = before.range.last().max(next.range.last());
                before.range.len = last - before.range.first + 1;
                before.order = before.order.min(next.order);
            }
            _ => {
                if let Some(slot) = asked.get_mut(kept) {
                    *slot = next;
                }
                kept += 1;
            }
        }
    }
    kept
}

/// One range of a set: `None` when malformed, `Some(None)` when outside the file (`len` > 0).
fn resolve(spec: &str, len: u64) -> Option<Option<ByteRange>> {
    let (first, last) = spec.split_once('-')?;
    if first.is_empty() {
        let suffix = number(last)?.min(len);
        return Some((suffix > 0).then_some(ByteRange { first: len - suffix, len: suffix }));
    }
    let first = number(first)?;
    let last = if last.is_empty() { u64::MAX } else { number(last)? };
    if last < first {
        return None;
    }
    Some((first < len).then(|| ByteRange { first, len: last.min(len - 1) - first + 1 }))
}

/// `1*DIGIT`, saturating.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| decimal(text).unwrap_or(u64::MAX))
}
