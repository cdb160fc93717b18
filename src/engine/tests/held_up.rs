//! What holds others up, and what must not: boots in line, readers that hardly read, files that change.

use super::*;

const OTHER: &str = "02:00:00:00:00:02";
const THIRD: &str = "02:00:00:00:00:03";

/// Three machines with a job for the same image, of which one boot at a time may fetch.
fn three_for_one_place() -> Lab {
    let limits = admission::Limits { per_image: 1, ..admission::Limits::default() };
    let lab = Lab::with_limited_jobs(Driver::Mio, 200_000, limits);
    for mac in ["02:00:00:00:00:01", OTHER, THIRD] {
        lab.add_for("linux", mac);
    }
    lab
}

#[test]
fn the_next_boot_begins_when_the_last_file_of_the_one_before_has_left() {
    let lab = three_for_one_place();
    let first = lab.script();
    assert!(first.contains("initrd.img"), "{first}");
    let second = lab.script_of(OTHER);
    assert!(second.contains("this machine is number 1 in line") && !second.contains("/s/"), "{second}");
    assert!(second.contains("chain --timeout 30000 --replace"), "it asks again: {second}");
    assert!(lab.script_of(THIRD).contains("number 2 in line"));
    // A HEAD is no question, and an admitted boot is never refused: it may ask again and fetch twice.
    let url = url_path(&first, "initrd.img");
    for _ in 0..2 {
        let (head, _) = get(&mut lab.http(), url, "Range: bytes=0-999\r\n");
        assert!(head.starts_with("HTTP/1.1 206"), "{head}");
    }
    assert!(lab.script_of(OTHER).contains("number 1 in line"));
    assert!(get(&mut lab.http(), url, "").1 == lab.content);
    // Its place is free; the line keeps its order.
    assert!(lab.script_of(THIRD).contains("number 2 in line"));
    assert!(lab.script_of(OTHER).contains("initrd.img"));
    assert!(lab.script_of(THIRD).contains("number 1 in line"));
    assert_eq!(lab.shared.admission_counts(), (1, 1));
    let waits: u64 = {
        let text = Engine::metrics(&lab.engine.as_ref().unwrap().cells());
        let line = text.lines().find(|line| line.starts_with("bootstorm_admission_waits_total")).unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    assert_eq!(waits, 5);
}

#[test]
fn who_is_next_has_its_script_as_soon_as_a_place_is_free() {
    let lab = three_for_one_place();
    let first = lab.script();
    let ask = |mac: &str| {
        let asked = std::time::Instant::now();
        let path = format!("/ipxe?mac={mac}&platform=efi&buildarch=x86_64");
        let (_, script) = get(&mut lab.http(), &path, "User-Agent: iPXE/1.21.1\r\n");
        (String::from_utf8(script).unwrap(), asked.elapsed())
    };
    let (second, took) = ask(OTHER);
    assert!(second.contains("number 1 in line") && took < Duration::from_secs(2), "{took:?}: {second}");
    assert!(ask(THIRD).0.contains("number 2 in line"));
    // Nothing becomes free: it is told so after a while, and who is not next at once.
    let scripts = lab.metric("bootstorm_http_scripts_total");
    let (second, took) = ask(OTHER);
    assert!(second.contains("number 1 in line") && took >= Duration::from_secs(2), "{took:?}: {second}");
    let (third, took) = ask(THIRD);
    assert!(third.contains("number 2 in line") && took < Duration::from_secs(2), "{took:?}: {third}");
    assert_eq!(lab.metric("bootstorm_http_scripts_total"), scripts + 2, "each was answered once");
    let second = std::thread::scope(|scope| {
        let second = scope.spawn(|| ask(OTHER));
        std::thread::sleep(Duration::from_millis(300));
        assert!(get(&mut lab.http(), url_path(&first, "initrd.img"), "").1 == lab.content);
        let freed = std::time::Instant::now();
        let (second, _) = second.join().unwrap();
        assert!(second.contains("initrd.img") && freed.elapsed() < Duration::from_millis(1500), "{second}");
        second
    });
    // Who goes away while it stands takes no place with it; who only has nothing more to say is answered.
    let stand = || {
        let mut stands = lab.http();
        let path = format!("/ipxe?mac={THIRD}&platform=efi&buildarch=x86_64");
        write!(stands, "GET {path} HTTP/1.1\r\nHost: x\r\nUser-Agent: iPXE/1.21.1\r\n\r\n").unwrap();
        std::thread::sleep(Duration::from_millis(300));
        stands
    };
    let mut silent = stand();
    silent.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = [0; 12];
    silent.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 503");
    drop(stand());
    std::thread::sleep(Duration::from_millis(200));
    assert!(get(&mut lab.http(), url_path(&second, "initrd.img"), "").1 == lab.content);
    std::thread::sleep(Duration::from_millis(400));
    assert_eq!(lab.shared.admission_counts(), (0, 1), "its place is kept for when it asks again");
    assert!(ask(THIRD).0.contains("initrd.img"));
}

#[test]
fn other_images_and_machines_without_a_job_never_wait() {
    let limits = admission::Limits { per_image: 1, ..admission::Limits::default() };
    let lab = Lab::with_limited_jobs(Driver::Mio, 1_000, limits);
    lab.add_for("linux", "02:00:00:00:00:01");
    lab.add_for("closed", OTHER);
    lab.add_for("custom", THIRD);
    assert!(lab.script().contains("initrd.img"));
    for mac in [OTHER, THIRD, "02:00:00:00:00:04"] {
        assert!(!lab.script_of(mac).contains("in line"), "{mac}");
    }
}

/// Reads a byte now and then for as long as it lives.
fn slow_readers(lab: &Lab, count: usize) -> Vec<TcpStream> {
    let reader = |_| {
        let mut stream = lab.http();
        write!(stream, "GET /images/big/payload.bin HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        stream.read_exact(&mut [0]).unwrap();
        stream
    };
    (0..count).map(reader).collect()
}

#[test]
fn readers_of_a_byte_at_a_time_hold_up_nobody() {
    let lab = Lab::start(Driver::Mio, 20_000_000);
    let mut slow = slow_readers(&lab, 200);
    for stream in &mut slow {
        stream.read_exact(&mut [0]).unwrap();
    }
    for _ in 0..4 {
        assert!(get(&mut lab.http(), "/images/big/payload.bin", "").1 == lab.content);
    }
    for stream in &mut slow {
        stream.read_exact(&mut [0]).unwrap();
    }
}

#[test]
fn clients_that_reset_in_mid_transfer_leave_no_connection_and_no_pipe() {
    let lab = Lab::start(Driver::Mio, 20_000_000);
    for _ in 0..3 {
        let gone = slow_readers(&lab, 150);
        for stream in gone {
            // Its end is a reset: the kernel still has bytes that nobody read.
            drop(stream);
        }
    }
    assert!(get(&mut lab.http(), "/images/big/payload.bin", "").1 == lab.content);
    let start = std::time::Instant::now();
    while lab.metric("bootstorm_http_connections_open") > 0 {
        assert!(start.elapsed() < Duration::from_secs(10), "connections stay");
        let _ = get(&mut lab.http(), "/healthz", "Connection: close\r\n");
    }
    assert!(lab.metric("bootstorm_http_aborted_total") >= 450);
}

#[test]
fn a_file_replaced_by_rename_is_delivered_as_it_was_and_one_written_over_is_cut() {
    let lab = Lab::start(Driver::Mio, 40_000_000);
    let path = lab.dir.join("images/big/payload.bin");
    let begin = |lab: &Lab| {
        let mut stream = lab.http();
        write!(stream, "GET /images/big/payload.bin HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        stream
    };
    let mut stream = begin(&lab);
    fs::write(lab.dir.join("new"), vec![7; 40_000_000]).unwrap();
    fs::rename(lab.dir.join("new"), &path).unwrap();
    lab.library.rescan().unwrap();
    let mut body = vec![0; lab.content.len()];
    stream.read_exact(&mut body).unwrap();
    assert!(body == lab.content, "one version to its end");
    assert_eq!(lab.metric("bootstorm_files_changed_total"), 0);

    let aged = std::time::SystemTime::now() - Duration::from_secs(60);
    fs::File::options().write(true).open(&path).unwrap().set_modified(aged).unwrap();
    lab.library.rescan().unwrap();
    let mut stream = begin(&lab);
    let file = fs::File::options().write(true).open(&path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[9; 4096], 39_000_000).unwrap();
    assert!(stream.read_exact(&mut body).is_err(), "cut, not mixed");
    assert_eq!(lab.metric("bootstorm_files_changed_total"), 1);
}
