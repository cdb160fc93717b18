//! The parts on a packet's path, one by one: `cargo bench --bench parts`.

use std::hint::black_box;
use std::time::{Instant, SystemTime};

use bootstorm::proto::http::{FileMeta, answer_file};
use bootstorm::proto::tftp::{Limits, Transfer};
use bootstorm::wire::dhcp::Message;
use bootstorm::wire::http::{Next, next_request};
use bootstorm::wire::tftp::{Mode, Options, Packet, Request};
use criterion::{Criterion, criterion_group, criterion_main};

const DISCOVER: &[u8] = include_bytes!("../tests/fuzz/seeds/dhcp_message/discover-uefi");
const RRQ: &[u8] = include_bytes!("../tests/fuzz/seeds/tftp_packet/rrq-uefi-size-query");
const GET: &[u8] = include_bytes!("../tests/fuzz/seeds/http_head/get-range");

fn parts(c: &mut Criterion) {
    c.bench_function("parse/dhcp/discover_uefi", |b| {
        b.iter(|| {
            let message = Message::parse(black_box(DISCOVER)).expect("a good message");
            (message.mac(), message.arch(), message.uuid())
        });
    });
    c.bench_function("parse/tftp/rrq", |b| b.iter(|| Packet::parse(black_box(RRQ)).is_ok()));
    c.bench_function("parse/http/get_range", |b| {
        b.iter(|| matches!(next_request(black_box(GET)), Next::Request { .. }));
    });
    let Next::Request { request, .. } = next_request(GET) else { panic!("a good request") };
    let meta = FileMeta {
        len: 6 << 30,
        etag: "\"1-2-3\"",
        modified: SystemTime::UNIX_EPOCH,
        content_type: "application/octet-stream",
    };
    let now = SystemTime::now();
    let mut head = Vec::with_capacity(1024);
    c.bench_function("answer/http/range", |b| {
        b.iter(|| {
            head.clear();
            answer_file(black_box(&request), &meta, now, &mut head).body_len
        });
    });
    c.bench_function("machine/tftp/block_and_ack", |b| {
        let options = Options { blksize: Some(1428), ..Options::default() };
        let request = Request { write: false, name: b"x", mode: Mode::Octet, options };
        let now = Instant::now();
        let (mut transfer, _) = Transfer::accept(now, &request, u64::MAX / 2, &Limits::default());
        transfer.poll_transmit(now);
        transfer.handle_ack(now, 0);
        let mut block = 0u16;
        b.iter(|| {
            black_box(transfer.poll_transmit(now));
            block = block.wrapping_add(1);
            transfer.handle_ack(now, block)
        });
    });
}

criterion_group!(benches, parts);
criterion_main!(benches);
