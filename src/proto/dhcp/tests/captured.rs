//! Exchanges of real clients from `tests/data/dhcp/captured.txt`: read as they were decoded there, and played again.

use std::fmt::Write as _;

use super::*;

const CAPTURED: &str = include_str!("../../../../tests/data/dhcp/captured.txt");

struct Said {
    by_client: bool,
    bytes: Vec<u8>,
    decoded: String,
}

/// Machines with what was said by and to them.
fn exchanges() -> Vec<(&'static str, Vec<Said>)> {
    let mut all: Vec<(&str, Vec<Said>)> = Vec::new();
    for line in CAPTURED.lines() {
        if let Some(name) = line.strip_prefix("# ") {
            all.push((name, Vec::new()));
        } else if let Some((way @ (">" | "<"), hex)) = line.split_once(' ') {
            let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex");
            let bytes = (0..hex.len()).step_by(2).map(byte).collect();
            let (_, said) = all.last_mut().expect("a name before the first message");
            said.push(Said { by_client: way == ">", bytes, decoded: String::new() });
        } else if let Some(text) = line.strip_prefix("  ") {
            let said =
                all.last_mut().and_then(|(_, said)| said.last_mut()).expect("a message before its meaning");
            writeln!(said.decoded, "{text}").expect("a string grows");
        }
    }
    all
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// As the file has it.
fn decode(message: &Message<'_>) -> String {
    let or_none = |text: String| if text.is_empty() { "-".into() } else { text };
    let options: Vec<String> =
        message.options().map(|(code, body)| format!("{code}={}", or_none(hex(body)))).collect();
    format!(
        "op={} htype={} hlen={} hops={} xid={:08x} secs={} flags={:04x}\n\
         ci={} yi={} si={} gi={} chaddr={}\nfile={}\n{}\n",
        message.op(),
        message.htype(),
        message.hlen(),
        message.hops(),
        message.xid(),
        message.secs(),
        message.flags(),
        message.ciaddr(),
        message.yiaddr(),
        message.siaddr(),
        message.giaddr(),
        hex(&message.chaddr()[..usize::from(message.hlen())]),
        or_none(String::from_utf8_lossy(message.file()).into_owned()),
        options.join(" "),
    )
}

#[test]
fn captured_messages_say_what_another_decoder_found_in_them() {
    let all = exchanges();
    assert!(all.len() >= 7, "{}", all.len());
    for (name, said) in &all {
        assert!(said.len() >= 4, "{name}");
        for said in said {
            let message = Message::parse(&said.bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(decode(&message), said.decoded, "{name}");
        }
    }
}

#[test]
fn captured_clients_are_answered_as_they_were() {
    let mut subnet = full().subnets.remove(0);
    subnet.range = Some((Ipv4Addr::new(10, 77, 0, 100), Ipv4Addr::new(10, 77, 0, 200)));
    let settings = Settings { subnets: vec![subnet], ..full() };
    let mut answers = 0;
    for (name, said) in exchanges() {
        let mut lab = Lab::new(settings.clone());
        let mut said = said.iter().peekable();
        while let Some(asked) = said.next() {
            assert!(asked.by_client, "{name}: an answer to nothing");
            let request = Message::parse(&asked.bytes).unwrap();
            let (src, dst) = match request.ciaddr() {
                NOBODY => (SocketAddrV4::new(NOBODY, 68), Ipv4Addr::BROADCAST),
                ciaddr => (SocketAddrV4::new(ciaddr, 68), US),
            };
            lab.now += Duration::from_secs(2);
            let verdict = lab.hear(ServerPort::Dhcp, src, dst, &asked.bytes);
            let what = format!("{name}: {:?}: {verdict:?}", request.message_type());
            let Some(answer) = said.next_if(|next| !next.by_client) else {
                assert!(!matches!(verdict, Verdict::Reply(..)), "{what}");
                continue;
            };
            let Verdict::Reply(output, _) = verdict else { panic!("{what}") };
            let (then, now) =
                (Message::parse(&answer.bytes).unwrap(), Message::parse(&lab.out[..output.len]).unwrap());
            let essence = |reply: &Message<'_>| {
                let codes = [code::SERVER_ID, code::SUBNET_MASK, code::VENDOR_CLASS, code::VENDOR_SPECIFIC];
                let options = codes.map(|code| reply.option(code).map(hex));
                (reply.message_type(), reply.yiaddr(), reply.siaddr(), hex(reply.file()), options)
            };
            assert_eq!(essence(&now), essence(&then), "{what}");
            answers += 1;
        }
    }
    assert!(answers >= 18, "{answers}");
}
