//! Replays the seeds and every saved finding of the fuzz targets, each with a fixed number of seeded mutations, on the
//! ordinary toolchain. Discovery runs apart: `tools/fuzz TARGET SECONDS`.

use std::fs;
use std::path::Path;
use std::time::Instant;

type Target = (&'static str, fn(&[u8]));

const TARGETS: &[Target] = &[
    ("dhcp_message", bootstorm::wire::dhcp::fuzz_message),
    ("dhcp_server", |bytes| bootstorm::proto::dhcp::fuzz_server(Instant::now(), bytes)),
    ("tftp_packet", bootstorm::wire::tftp::fuzz_packet),
    ("tftp_transfer", |bytes| bootstorm::proto::tftp::fuzz_transfer(Instant::now(), bytes)),
    ("http_head", |bytes| {
        bootstorm::proto::http::fuzz_head(bytes);
    }),
    ("wim_header", bootstorm::wire::wim::fuzz_wim),
    ("wim_file", bootstorm::files::wim::fuzz_file),
    ("udp_frame", bootstorm::wire::frame::fuzz_frame),
    ("http_values", bootstorm::wire::http::fuzz_values),
    ("loader", bootstorm::files::loader_facts::fuzz_loader),
    ("template", bootstorm::jobs::template::fuzz_template),
    ("lease_segment", bootstorm::store::journal::fuzz_segment),
];

/// Changed copies made of every seed.
const MUTATIONS: u32 = 300;

fn xorshift(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

fn mutate(seed: &[u8], random: &mut u64) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=xorshift(random) % 4 {
        let at = if bytes.is_empty() { 0 } else { xorshift(random) as usize % bytes.len() };
        match xorshift(random) % 5 {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << (xorshift(random) % 8),
            1 if !bytes.is_empty() => bytes[at] = xorshift(random) as u8,
            2 => bytes.truncate(at),
            3 => bytes.insert(at, xorshift(random) as u8),
            _ => bytes.extend_from_slice(&seed[..at.min(seed.len())]),
        }
    }
    bytes
}

#[test]
fn seeds_findings_and_their_mutations_do_no_harm() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/seeds");
    for (name, run) in TARGETS {
        let mut random = 0x9e37_79b9_7f4a_7c15;
        let mut seeds: Vec<_> = fs::read_dir(corpus.join(name))
            .unwrap_or_else(|e| panic!("no seeds for {name}: {e}"))
            .map(|entry| entry.expect("a folder entry is readable").path())
            .collect();
        seeds.sort();
        assert!(!seeds.is_empty(), "no seeds for {name}");
        run(&[]);
        for path in seeds {
            let seed = fs::read(&path).expect("a seed is readable");
            run(&seed);
            for _ in 0..MUTATIONS {
                run(&mutate(&seed, &mut random));
            }
        }
    }
}
