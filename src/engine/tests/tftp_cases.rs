//! Cases from `tests/data/tftp/requests.txt`: packets to the running engine, and what it answers.

use super::*;
use crate::wire::http::unescape;

const REQUESTS: &str = include_str!("../../../tests/data/tftp/requests.txt");

/// Asked for last in every case: whatever the server sent beyond what was expected would come before its answer.
const PLAIN: &[u8] = b"\0\x01t/1.bin\0octet\0";

#[test]
fn every_request_case_is_answered_as_written_down() {
    let lab = Lab::start_with(Driver::Mio, 10, |images| {
        fs::create_dir_all(images.join("t/Boot")).unwrap();
        fs::create_dir_all(images.join("t/private")).unwrap();
        fs::create_dir_all(images.join("locked")).unwrap();
        for len in [0, 1, 511, 512, 513, 1000, 5000] {
            fs::write(images.join(format!("t/{len}.bin")), content(len)).unwrap();
        }
        fs::write(images.join("t/Boot/BCD"), content(100)).unwrap();
        fs::write(images.join("t/a b.txt"), "x").unwrap();
        fs::write(images.join("t/\u{e9}.txt"), "xy").unwrap();
        fs::write(images.join("t/lines.txt"), "a\nb\r\nc").unwrap();
        fs::write(images.join("t/large.txt"), content((1 << 20) + 1)).unwrap();
        fs::write(images.join("t/.hidden"), "x").unwrap();
        fs::write(images.join("t/private/key"), "x").unwrap();
        fs::write(images.join("t/unattend.xml.tmpl"), "x").unwrap();
        fs::write(images.join("locked/boot.bin"), "x").unwrap();
        fs::write(images.join("locked/image.toml"), "access = \"boot\"\n").unwrap();
        fs::write(images.join("stray.txt"), "x").unwrap();
    });
    let lines: Vec<_> = REQUESTS.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    assert!(lines.len() >= 80, "{}", lines.len());
    let wrong: Vec<_> = lines.iter().filter_map(|line| case(&lab, line).err()).collect();
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

fn client() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    socket
}

/// Plays one line; what is wrong, if something is.
fn case(lab: &Lab, line: &str) -> Result<(), String> {
    let (name, steps) = line.split_once(" | ").expect("a name");
    let listener = lab.engine.as_ref().unwrap().bound.tftp[0];
    let (socket, other) = (client(), client());
    let mut tid = None;
    for step in steps.split(" ; ") {
        let (bytes, expected) = step.rsplit_once(" > ").expect("an answer");
        let bytes = bytes.trim();
        let transfer = || tid.unwrap_or_else(|| panic!("{name}: nobody answered yet"));
        if let Some(bytes) = bytes.strip_prefix("other@") {
            other.send_to(&unescape(bytes), transfer()).unwrap();
        } else if let Some(bytes) = bytes.strip_prefix('@') {
            socket.send_to(&unescape(bytes), transfer()).unwrap();
        } else {
            socket.send_to(&unescape(bytes), listener).unwrap();
            tid = None;
        }
        if expected.trim() == "silence" {
            continue;
        }
        let (found, from) = answer(&socket);
        if found != expected.trim() {
            return Err(format!("{name}: {found}, not {}", expected.trim()));
        }
        if !found.starts_with("error")
            && (from == SocketAddr::V4(listener) || *tid.get_or_insert(from) != from)
        {
            return Err(format!("{name}: {found} comes from {from}, which is not the transfer's port"));
        }
    }
    socket.send_to(PLAIN, listener).unwrap();
    match answer(&socket) {
        (found, from) if found == "data 1 1" => {
            socket.send_to(b"\0\x04\0\x01", from).unwrap();
            Ok(())
        }
        (found, _) => Err(format!("{name}: afterwards {found}")),
    }
}

fn answer(socket: &UdpSocket) -> (String, SocketAddr) {
    let mut buffer = vec![0; 70_000];
    let Ok((len, from)) = socket.recv_from(&mut buffer) else {
        return ("silence".into(), SocketAddr::from(([0, 0, 0, 0], 0)));
    };
    let bytes = &buffer[..len];
    let text = match Packet::parse(bytes).unwrap() {
        Packet::Data(block, payload) if payload.len() <= 16 && !payload.is_empty() && payload.len() != 1 => {
            format!("data {block} {} {}", payload.len(), payload.escape_ascii())
        }
        Packet::Data(block, payload) => format!("data {block} {}", payload.len()),
        Packet::Oack(_) => format!("oack {}", bytes[2..].escape_ascii()),
        Packet::Error(code, message) => {
            assert!(message.is_ascii() && !message.windows(4).any(|w| w == b"/tmp"), "{message:?}");
            assert_eq!(bytes.last(), Some(&0), "an ERROR's message ends with NUL");
            format!("error {}", code.code())
        }
        other => panic!("a server never sends {other:?}"),
    };
    (text, from)
}
