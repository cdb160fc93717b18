//! Cases from `tests/data/tftp/transfers.txt`: what a client says, when, and exactly what comes back.

use super::*;
use crate::wire::http::unescape;
use crate::wire::tftp::{Packet, emit_oack};

const TRANSFERS: &str = include_str!("../../../tests/data/tftp/transfers.txt");

#[test]
fn every_transfer_case_goes_as_written_down() {
    let lines: Vec<_> = TRANSFERS.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    assert!(lines.len() >= 120, "{}", lines.len());
    let wrong: Vec<_> = lines.iter().filter_map(|line| case(line).err()).collect();
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

struct Play {
    now: Instant,
    start: Instant,
    transfer: Transfer,
    said: Vec<String>,
}

/// Plays one line; what is wrong, if something is.
fn case(line: &str) -> Result<(), String> {
    let mut fields = line.split('|').map(str::trim);
    let mut field = || fields.next().unwrap_or_else(|| panic!("four fields: {line}"));
    let (name, options, file, steps) = (field(), field(), field(), field());
    let mut bytes = b"\0\x01x\0octet\0".to_vec();
    for option in options.split_whitespace() {
        let (name, value) = option.split_once('=').expect("NAME=VALUE");
        bytes.extend([name.as_bytes(), b"\0", value.as_bytes(), b"\0"].concat());
    }
    let Ok(Packet::Request(request)) = Packet::parse(&bytes) else { panic!("{name}: no request") };
    let mut limits = Limits::default();
    let mut words = file.split_whitespace();
    let len = number(words.next().expect("a length"));
    for limit in words {
        match limit.split_once('=') {
            Some(("blksize_max", value)) => limits.blksize_max = number(value) as u16,
            Some(("windowsize_max", value)) => limits.windowsize_max = number(value) as u16,
            Some(("rollover", value)) => limits.rollover_to = number(value) as u16,
            other => panic!("{name}: {other:?}"),
        }
    }
    let start = Instant::now();
    let (transfer, _) = Transfer::accept(start, &request, len, &limits);
    let mut play = Play { now: start, start, transfer, said: Vec::new() };
    for (index, step) in steps.split(';').map(str::trim).enumerate() {
        let (input, expected) = step.split_once('>').unwrap_or(("", step));
        play.input(input.trim());
        play.drain();
        let found = if play.said.is_empty() { "-".to_owned() } else { play.said.join(" ") };
        play.said.clear();
        if found != expected.trim() {
            return Err(format!("{name}: step {index} {input}> {found}, not {}", expected.trim()));
        }
    }
    Ok(())
}

fn number(text: &str) -> u64 {
    text.parse().unwrap_or_else(|_| panic!("{text:?} is no number"))
}

impl Play {
    fn input(&mut self, input: &str) {
        let (verb, rest) = input.split_once(' ').unwrap_or((input, ""));
        match verb {
            "" => {}
            "ack" => self.packet(&[b"\0\x04".as_slice(), &(number(rest) as u16).to_be_bytes()].concat()),
            "error" => self.packet(&[b"\0\x05\0", &[number(rest) as u8][..], b"\0"].concat()),
            "bytes" => self.packet(&unescape(rest)),
            "retry" => {
                let verdict = self.transfer.handle_retried_request(self.now);
                self.verdict(verdict);
            }
            "through" => self.through(number(rest)),
            time => {
                let ms = number(time.strip_prefix('+').unwrap_or_else(|| panic!("{input:?}")));
                self.pass(self.now + Duration::from_millis(ms));
            }
        }
    }

    fn packet(&mut self, bytes: &[u8]) {
        let verdict = match Packet::parse(bytes).expect("a packet") {
            Packet::Ack(block) => self.transfer.handle_ack(self.now, block),
            Packet::Error(code, _) => self.transfer.handle_error(self.now, code),
            other => panic!("{other:?}"),
        };
        self.verdict(verdict);
    }

    /// Acknowledges window after window until so many blocks are.
    fn through(&mut self, blocks: u64) {
        while self.transfer.acked < blocks {
            while self.transfer.poll_transmit(self.now).is_some() {}
            let wire = self.transfer.numbering.wire(self.transfer.next.min(blocks));
            let verdict = self.transfer.handle_ack(self.now, wire);
            self.verdict(verdict);
        }
    }

    /// Time passes; every deadline on the way is kept.
    fn pass(&mut self, until: Instant) {
        self.drain();
        while let Some(at) = self.transfer.poll_timeout().filter(|at| *at <= until) {
            self.now = self.now.max(at);
            let verdict = self.transfer.handle_timeout(self.now);
            self.verdict(verdict);
            self.drain();
        }
        self.now = until;
    }

    fn verdict(&mut self, verdict: Verdict) {
        self.said.extend(match verdict {
            Verdict::Progress => None,
            Verdict::Ignored(reason) => Some(reason.word().to_owned()),
            Verdict::Finished(Outcome::Complete) => Some("complete".into()),
            Verdict::Finished(Outcome::ProbeAborted) => Some("size-query".into()),
            Verdict::Finished(Outcome::TimedOut) => {
                Some(format!("timed-out@{}", self.now.duration_since(self.start).as_millis()))
            }
            Verdict::Finished(Outcome::ClientError(code)) => Some(format!("client-error:{}", code.code())),
        });
    }

    fn drain(&mut self) {
        while let Some(transmit) = self.transfer.poll_transmit(self.now) {
            self.said.push(match transmit {
                Transmit::Oack(options) => {
                    let mut buffer = [0; 128];
                    let len = emit_oack(&mut buffer, &options).expect("an OACK is short");
                    let words: Vec<_> =
                        buffer[2..len].split(|b| *b == 0).map(|w| w.escape_ascii().to_string()).collect();
                    let pairs: Vec<_> = words.chunks_exact(2).map(|pair| pair.join("=")).collect();
                    format!("oack[{}]", pairs.join(","))
                }
                Transmit::Data(run) => {
                    let wire = |i| {
                        let [_, opcode, high, low] = run.header(i);
                        assert_eq!(opcode, 3);
                        u16::from_be_bytes([high, low])
                    };
                    match run.count {
                        1 => format!("{}({})", wire(0), run.bytes),
                        count => format!("{}-{}({})", wire(0), wire(count - 1), run.bytes),
                    }
                }
            });
        }
    }
}
