//! Timelines: (time, input) and exactly what comes out.

use super::*;
use crate::wire::tftp::Mode;

fn request(options: Options) -> Request<'static> {
    Request { write: false, name: b"x", mode: Mode::Octet, options }
}

fn lockstep() -> Options {
    Options { blksize: Some(1000), ..Options::default() }
}

fn windowed(windowsize: u16) -> Options {
    Options { blksize: Some(1000), windowsize: Some(windowsize), ..Options::default() }
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Everything the machine wants sent now: (first block number on the wire, blocks).
fn drain(transfer: &mut Transfer, now: Instant) -> Vec<(u16, u16)> {
    let mut out = Vec::new();
    while let Some(transmit) = transfer.poll_transmit(now) {
        match transmit {
            Transmit::Oack(_) => out.push((0, 0)),
            Transmit::Data(run) => {
                let [.., high, low] = run.header(0);
                out.push((u16::from_be_bytes([high, low]), run.count));
            }
        }
    }
    out
}

/// A transfer whose OACK is acknowledged.
fn running(now: Instant, options: Options, len: u64) -> Transfer {
    let (mut transfer, start) = Transfer::accept(now, &request(options), len, &Limits::default());
    assert_eq!(start, Start::Oack);
    assert_eq!(drain(&mut transfer, now), [(0, 0)]);
    assert_eq!(transfer.handle_ack(now, 0), Verdict::Progress);
    transfer
}

#[test]
fn a_request_without_options_is_answered_by_the_first_block() {
    let now = Instant::now();
    let (mut transfer, start) = Transfer::accept(now, &request(Options::default()), 600, &Limits::default());
    assert_eq!(start, Start::Data);
    assert_eq!(transfer.oack(), None);
    assert_eq!(drain(&mut transfer, now), [(1, 1)]);
    assert_eq!(transfer.handle_ack(now, 1), Verdict::Progress);
    assert_eq!(drain(&mut transfer, now), [(2, 1)]);
    assert_eq!(transfer.handle_ack(now, 2), Verdict::Finished(Outcome::Complete));
}

#[test]
fn only_what_was_asked_is_granted_and_never_more() {
    let now = Instant::now();
    let limits = Limits { blksize_max: 1428, windowsize_max: 16, rollover_to: 0 };
    for (asked, granted) in [
        (
            Options { tsize: Some(0), ..Options::default() },
            Options { tsize: Some(5000), ..Options::default() },
        ),
        (
            Options { blksize: Some(65464), ..Options::default() },
            Options { blksize: Some(1428), ..Options::default() },
        ),
        (
            Options { blksize: Some(8), ..Options::default() },
            Options { blksize: Some(8), ..Options::default() },
        ),
        (
            Options { windowsize: Some(64), ..Options::default() },
            Options { windowsize: Some(16), ..Options::default() },
        ),
        (
            Options { timeout_secs: Some(7), ..Options::default() },
            Options { timeout_secs: Some(7), ..Options::default() },
        ),
        (
            Options { blksize: Some(1468), tsize: Some(0), timeout_secs: None, windowsize: Some(4) },
            Options { blksize: Some(1428), tsize: Some(5000), timeout_secs: None, windowsize: Some(4) },
        ),
    ] {
        let (transfer, start) = Transfer::accept(now, &request(asked), 5000, &limits);
        assert_eq!(start, Start::Oack);
        assert_eq!(transfer.oack(), Some(granted));
    }
}

#[test]
fn every_length_ends_with_one_short_block() {
    let now = Instant::now();
    for (len, sizes) in [
        (0, vec![0]),
        (1, vec![1]),
        (999, vec![999]),
        (1000, vec![1000, 0]),
        (1001, vec![1000, 1]),
        (3000, vec![1000, 1000, 1000, 0]),
    ] {
        let mut transfer = running(now, lockstep(), len);
        let mut seen = Vec::new();
        let mut block = 0;
        loop {
            let Some(Transmit::Data(run)) = transfer.poll_transmit(now) else {
                panic!("{len}: nothing to send")
            };
            assert_eq!(run.count, 1);
            assert_eq!(run.slice(0).0, run.offset);
            seen.push(run.slice(0).1);
            block += 1;
            if transfer.handle_ack(now, block) == Verdict::Finished(Outcome::Complete) {
                break;
            }
        }
        assert_eq!(seen, sizes, "length {len}");
        assert_eq!(transfer.acked_bytes(), len);
    }
}

#[test]
fn a_window_larger_than_the_file_is_one_run() {
    let now = Instant::now();
    let mut transfer = running(now, windowed(64), 2500);
    assert_eq!(drain(&mut transfer, now), [(1, 3)]);
    assert_eq!(transfer.handle_ack(now, 3), Verdict::Finished(Outcome::Complete));
}

#[test]
fn an_ack_inside_the_window_resumes_behind_the_gap() {
    let now = Instant::now();
    let mut transfer = running(now, windowed(4), 100_000);
    assert_eq!(drain(&mut transfer, now), [(1, 4)]);
    assert_eq!(transfer.handle_ack(now + ms(1), 2), Verdict::Progress);
    assert_eq!(drain(&mut transfer, now + ms(1)), [(3, 4)]);
    assert_eq!(transfer.handle_ack(now + ms(2), 6), Verdict::Progress);
    assert_eq!(drain(&mut transfer, now + ms(2)), [(7, 4)]);
}

#[test]
fn duplicate_acks_cause_one_resend_per_round_trip() {
    let now = Instant::now();
    let mut transfer = running(now, windowed(4), 100_000);
    assert_eq!(drain(&mut transfer, now), [(1, 4)]);
    assert_eq!(transfer.handle_ack(now + ms(30), 4), Verdict::Progress);
    assert_eq!(drain(&mut transfer, now + ms(30)), [(5, 4)]);
    // Block 5 is lost; 6, 7 and 8 each bring an ACK of 4.
    let late = now + ms(65);
    assert_eq!(transfer.rtt(), Some(Duration::from_micros(3750)));
    assert_eq!(transfer.handle_ack(late, 4), Verdict::Progress);
    assert_eq!(drain(&mut transfer, late), [(5, 4)]);
    for wait in [0, 1, 3] {
        let verdict = transfer.handle_ack(late + ms(wait), 4);
        assert_eq!(verdict, Verdict::Ignored(DropReason::DuplicateAck));
        assert_eq!(drain(&mut transfer, late + ms(wait)), []);
    }
}

#[test]
fn a_delayed_duplicate_does_not_double_every_packet_after_it() {
    let now = Instant::now();
    let mut transfer = running(now, lockstep(), 100_000);
    assert_eq!(drain(&mut transfer, now), [(1, 1)]);
    assert_eq!(transfer.handle_ack(now + ms(1), 1), Verdict::Progress);
    assert_eq!(drain(&mut transfer, now + ms(1)), [(2, 1)]);
    assert_eq!(transfer.handle_ack(now + ms(2), 1), Verdict::Ignored(DropReason::DuplicateAck));
    assert_eq!(transfer.handle_ack(now + ms(3), 2), Verdict::Progress);
    assert_eq!(drain(&mut transfer, now + ms(3)), [(3, 1)]);
    assert_eq!(transfer.handle_ack(now + ms(4), 1), Verdict::Ignored(DropReason::StaleAck));
    assert_eq!(transfer.handle_ack(now + ms(4), 9), Verdict::Ignored(DropReason::FutureAck));
    assert_eq!(drain(&mut transfer, now + ms(4)), []);
}

#[test]
fn block_numbers_roll_over_to_0_or_1() {
    for (rollover_to, after) in [(0, 0), (1, 1)] {
        let now = Instant::now();
        let limits = Limits { rollover_to, ..Limits::default() };
        let options = Options { blksize: Some(8), ..Options::default() };
        let (mut transfer, _) = Transfer::accept(now, &request(options), 8 * 70_000, &limits);
        drain(&mut transfer, now);
        transfer.handle_ack(now, 0);
        for count in 1..=65535u32 {
            assert_eq!(drain(&mut transfer, now), [(count as u16, 1)]);
            assert_eq!(transfer.handle_ack(now, count as u16), Verdict::Progress);
        }
        assert_eq!(drain(&mut transfer, now), [(after, 1)]);
        assert_eq!(transfer.handle_ack(now, after), Verdict::Progress);
        assert_eq!(drain(&mut transfer, now), [(after + 1, 1)]);
    }
}

#[test]
fn a_file_above_four_gibibytes_is_counted_in_full() {
    let now = Instant::now();
    let len = (6 << 30) + 17;
    let options =
        Options { blksize: Some(65464), tsize: Some(0), windowsize: Some(64), ..Options::default() };
    let mut transfer = running(now, options, len);
    let (mut blocks, mut end) = (0u64, 0);
    loop {
        let Some(Transmit::Data(run)) = transfer.poll_transmit(now) else { panic!("nothing to send") };
        assert_eq!(run.offset, end);
        end += run.bytes;
        blocks += u64::from(run.count);
        if transfer.handle_ack(now, blocks as u16) == Verdict::Finished(Outcome::Complete) {
            break;
        }
    }
    assert_eq!(end, len);
    assert_eq!(transfer.acked_bytes(), len);
}

#[test]
fn an_error_after_a_size_query_is_no_failure() {
    let now = Instant::now();
    let uefi = Options { blksize: Some(1468), tsize: Some(0), timeout_secs: None, windowsize: Some(4) };
    let (mut transfer, _) = Transfer::accept(now, &request(uefi), 5000, &Limits::default());
    drain(&mut transfer, now);
    let verdict = transfer.handle_error(now, ErrorCode::OptionRefused);
    assert_eq!(verdict, Verdict::Finished(Outcome::ProbeAborted));
    assert_eq!(transfer.poll_timeout(), None);
}

#[test]
fn an_error_in_the_middle_is_one() {
    let now = Instant::now();
    let mut transfer = running(now, lockstep(), 100_000);
    drain(&mut transfer, now);
    transfer.handle_ack(now, 1);
    let verdict = transfer.handle_error(now, ErrorCode::DiskFull);
    assert_eq!(verdict, Verdict::Finished(Outcome::ClientError(ErrorCode::DiskFull)));
    assert_eq!(transfer.handle_ack(now, 2), Verdict::Ignored(DropReason::AfterEnd));
}

#[test]
fn a_retried_request_gets_the_identical_answer() {
    let now = Instant::now();
    let uefi = Options { blksize: Some(1468), tsize: Some(0), timeout_secs: None, windowsize: Some(4) };
    let (mut transfer, _) = Transfer::accept(now, &request(uefi), 5000, &Limits::default());
    let first = transfer.poll_transmit(now);
    assert_eq!(transfer.handle_retried_request(now + ms(500)), Verdict::Progress);
    assert_eq!(transfer.poll_transmit(now + ms(500)), first);
}

#[test]
fn a_copy_of_the_request_that_was_overtaken_changes_nothing() {
    let now = Instant::now();
    for options in [lockstep(), windowed(4), Options::default()] {
        let (mut transfer, start) = Transfer::accept(now, &request(options), 100_000, &Limits::default());
        drain(&mut transfer, now);
        if start == Start::Oack {
            transfer.handle_ack(now, 0);
            drain(&mut transfer, now);
        }
        transfer.handle_ack(now, 1);
        drain(&mut transfer, now);
        let late = Verdict::Ignored(DropReason::OvertakenRequest);
        assert_eq!(transfer.handle_retried_request(now + ms(900)), late);
        assert_eq!(drain(&mut transfer, now + ms(900)), []);
        let acked = transfer.acked_bytes();
        assert_eq!(transfer.handle_ack(now + ms(901), 2), Verdict::Progress);
        assert!(transfer.acked_bytes() > acked, "the transfer goes on where it was");
        // A machine that was switched off and on again asks from the same port, and was silent before.
        assert_eq!(transfer.handle_retried_request(now + ms(1901)), Verdict::Progress);
        let first = if start == Start::Oack { (0, 0) } else { (1, 1) };
        assert_eq!(drain(&mut transfer, now + ms(1901)), [first]);
    }
}

/// Times, relative to the start, at which a client is sent something that falls silent after ACK `last`, or says
/// nothing at all.
fn schedule(options: Options, last: Option<u16>) -> (Vec<u64>, Outcome) {
    let start = Instant::now();
    let (mut transfer, _) = Transfer::accept(start, &request(options), 5000, &Limits::default());
    if let Some(last) = last {
        for block in 0..=last {
            drain(&mut transfer, start);
            transfer.handle_ack(start, block);
        }
    }
    let mut times = Vec::new();
    let mut now = start;
    loop {
        if !drain(&mut transfer, now).is_empty() {
            times.push(now.duration_since(start).as_millis() as u64);
        }
        now = transfer.poll_timeout().expect("a running transfer has a deadline");
        if let Verdict::Finished(outcome) = transfer.handle_timeout(now) {
            return (times, outcome);
        }
    }
}

#[test]
fn a_silent_client_is_asked_ever_less_often_and_given_up_after_half_a_minute() {
    let (times, outcome) = schedule(lockstep(), Some(1));
    assert_eq!(times, [0, 250, 750, 1750, 3750, 7750, 15_750, 23_750]);
    assert_eq!(outcome, Outcome::TimedOut);
}

#[test]
fn who_acknowledged_the_options_only_gets_the_first_window_three_times_at_most() {
    assert_eq!(schedule(lockstep(), Some(0)), (vec![0, 1000, 3000], Outcome::TimedOut));
    let timed = Options { timeout_secs: Some(1), ..windowed(64) };
    assert_eq!(schedule(timed, Some(0)), (vec![0, 1000, 2000], Outcome::TimedOut));
    // The block between is the window's last.
    assert_eq!(schedule(windowed(64), Some(0)), (vec![0, 20, 1020, 3020], Outcome::TimedOut));
}

#[test]
fn only_who_moves_on_keeps_its_place_unless_it_waits_for_us() {
    let start = Instant::now();
    // Of a file of three blocks the last is held back.
    let mut held = running(start, lockstep(), 2500);
    held.hold_last();
    for block in 1..=2 {
        drain(&mut held, start);
        held.handle_ack(start, block);
    }
    assert!(held.waits_for_release());
    // The same without, whose last block is lost again and again.
    let mut lost = running(start, lockstep(), 2500);
    for block in 1..=2 {
        drain(&mut lost, start);
        lost.handle_ack(start, block);
    }
    for transfer in [&mut held, &mut lost] {
        let (mut now, mut again) = (start, start);
        let outcome = loop {
            drain(transfer, now);
            now = transfer.poll_timeout().expect("a running transfer has a deadline").min(again);
            if now >= again {
                transfer.handle_ack(now, 2);
                again = now + Duration::from_secs(5);
            }
            if let Verdict::Finished(outcome) = transfer.handle_timeout(now) {
                break Some(outcome);
            }
            if now > start + Duration::from_secs(300) {
                break None;
            }
        };
        let waited = now - start;
        match transfer.waits_for_release() {
            true => assert_eq!(outcome, None, "it waits for us"),
            false => assert_eq!((outcome, waited), (Some(Outcome::TimedOut), SILENCE_MAX)),
        }
    }
    held.release();
    let now = start + Duration::from_secs(301);
    assert_eq!(drain(&mut held, now), [(3, 1)]);
    assert_eq!(held.handle_ack(now, 3), Verdict::Finished(Outcome::Complete));
}

#[test]
fn who_never_acknowledged_anything_gets_its_options_four_times_at_most_and_a_block_twice() {
    for options in [lockstep(), windowed(64)] {
        assert_eq!(schedule(options, None), (vec![0, 1000, 3000, 7000], Outcome::TimedOut));
    }
    let every_second = Options { timeout_secs: Some(1), ..lockstep() };
    assert_eq!(schedule(every_second, None), (vec![0, 1000, 2000, 3000], Outcome::TimedOut));
    assert_eq!(schedule(Options::default(), None), (vec![0, 1000], Outcome::TimedOut));
    // The shortest request for a loader against all that is sent for it, headers left out on both sides.
    let request_len = b"\0\x01ipxe.0\0octet\0".len();
    assert!(2 * (4 + usize::from(BLKSIZE_DEFAULT)) <= 70 * request_len);
}

#[test]
fn a_request_repeated_while_its_answer_is_lost_is_answered_each_time() {
    let start = Instant::now();
    let (mut transfer, _) = Transfer::accept(start, &request(Options::default()), 5000, &Limits::default());
    assert_eq!(drain(&mut transfer, start), [(1, 1)]);
    for seconds in 1..=8 {
        let now = start + Duration::from_secs(seconds * 4);
        assert_eq!(transfer.handle_retried_request(now), Verdict::Progress);
        assert_eq!(drain(&mut transfer, now), [(1, 1)], "after {seconds} requests");
    }
    let now = start + Duration::from_secs(33);
    transfer.handle_ack(now, 1);
    assert_eq!(drain(&mut transfer, now), [(2, 1)]);
}

#[test]
fn the_timeout_option_is_kept_to_the_second_and_holds_no_place_for_strangers() {
    let timeout = |secs| Options { timeout_secs: Some(secs), ..Options::default() };
    let (times, _) = schedule(timeout(3), Some(1));
    assert_eq!(times, (0..10).map(|n| n * 3000).collect::<Vec<_>>());
    let (times, _) = schedule(timeout(12), Some(1));
    assert_eq!(times, [0, 12_000, 24_000, 36_000, 48_000]);
    assert_eq!(schedule(timeout(255), Some(1)), (vec![0], Outcome::TimedOut));
    assert_eq!(schedule(timeout(3), None).0, [0, 3000, 6000, 9000]);
    assert_eq!(schedule(timeout(5), None).0, [0, 5000, 10_000, 15_000]);
    assert_eq!(schedule(timeout(8), None).0, [0, 8000]);
    assert_eq!(schedule(timeout(255), None), (vec![0], Outcome::TimedOut));
}

#[test]
fn a_fast_network_is_resent_to_sooner_but_never_before_a_quarter_second() {
    let now = Instant::now();
    let mut transfer = running(now, lockstep(), 100_000);
    for block in 1..=20 {
        drain(&mut transfer, now);
        transfer.handle_ack(now + Duration::from_micros(200), block);
    }
    assert!(transfer.rtt().unwrap() < ms(2));
    drain(&mut transfer, now);
    assert_eq!(transfer.poll_timeout(), Some(now + ms(250)));
}
