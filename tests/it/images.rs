//! The image library on the real binary: files taken in, refused, doubted, versioned, verified, removed, dropped in by
//! hand, copied over while they are served; what is read of WIMs beside what wimlib says of them.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use labkit::{Namespace, Process, TempDir, run, tool};
use serde_json::Value;

use crate::server::{FULL, Net, SOON, Server, Site, binary};

fn wimlib(words: &[&str]) -> String {
    run(Command::new(tool("wimlib-imagex", "wimtools")).args(words))
}

fn path(file: &Path) -> &str {
    file.to_str().expect("paths of tests are UTF-8")
}

/// Something to capture: text that compresses, and noise that does not.
fn content(folder: &Path) -> PathBuf {
    let source = folder.join("content");
    fs::create_dir_all(source.join("Windows/System32")).expect("a folder");
    for n in 0..20 {
        let text = format!("file {n} ").repeat(3000 + n);
        fs::write(source.join(format!("Windows/System32/{n}.txt")), text).expect("a file");
    }
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let noise: Vec<u8> = (0..300_000)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect();
    fs::write(source.join("noise.bin"), noise).expect("a file");
    source
}

/// A WIM of two images, the second of which boots, as Windows media have.
fn media(folder: &Path, name: &str, options: &[&str]) -> PathBuf {
    let source = content(folder);
    let wim = folder.join(name);
    wimlib(&[&["capture", path(&source), path(&wim), "Microsoft Windows PE (x64)"], options].concat());
    wimlib(&["append", path(&source), path(&wim), "Microsoft Windows Setup (x64)", "--boot"]);
    let check: &[&str] = if options.contains(&"--check") { &["--check"] } else { &[] };
    for index in ["1", "2"] {
        let properties = ["WINDOWS/ARCH=9", "WINDOWS/VERSION/MAJOR=10", "WINDOWS/VERSION/MINOR=0"];
        let mut words = vec!["info", path(&wim), index, "--image-property", "WINDOWS/VERSION/BUILD=26100"];
        properties.iter().for_each(|property| words.extend(["--image-property", property]));
        words.extend(check);
        wimlib(&words);
    }
    wim
}

/// A site that no server ever ran with.
struct Shelf {
    dir: TempDir,
}

impl Shelf {
    fn new() -> Self {
        let dir = TempDir::new("shelf");
        for name in ["images", "state", "loaders"] {
            fs::create_dir_all(dir.join(name)).expect("a folder");
        }
        fs::write(dir.join("loaders/wimboot"), b"stand-in").expect("a stand-in for wimboot");
        let config = format!("[loaders]\ndirs = [\"{}\"]\n", dir.join("loaders").display());
        fs::write(dir.join("c.toml"), config).expect("a configuration");
        Self { dir }
    }

    fn command(&self, words: &[&str]) -> Output {
        let mut command = Command::new(binary());
        command.arg("image").args(words).arg("--config").arg(self.dir.join("c.toml"));
        command.arg("--images").arg(self.dir.join("images")).arg("--state").arg(self.dir.join("state"));
        command.output().expect("bootstorm runs")
    }

    /// Exit code, and everything it said.
    fn outcome(&self, words: &[&str]) -> (i32, String) {
        let output = self.command(words);
        let text =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.code().unwrap_or(-1), text)
    }

    #[track_caller]
    fn ask(&self, words: &[&str]) -> String {
        let (code, text) = self.outcome(words);
        assert_eq!(code, 0, "image {words:?}\n{text}");
        text
    }

    #[track_caller]
    fn json(&self, words: &[&str]) -> Value {
        let output = self.command(words);
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{words:?}: {error}\n{}", String::from_utf8_lossy(&output.stderr)))
    }

    /// Nothing of an image, and nothing half-done beside it.
    #[track_caller]
    fn has_nothing_of(&self, name: &str) {
        assert!(!self.dir.join("images").join(name).exists());
        let staged = fs::read_dir(self.dir.join("images/.staging")).into_iter().flatten().flatten();
        let left: Vec<_> = staged.map(|entry| entry.file_name()).filter(|name| name != ".lock").collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

fn warnings(text: &str) -> Vec<&str> {
    text.lines().filter(|line| line.starts_with("warning:")).collect()
}

#[test]
fn a_good_wim_is_taken_without_a_word_of_doubt() {
    let shelf = Shelf::new();
    for (name, options) in [
        ("lzx", &["--compress=LZX", "--check"][..]),
        ("xpress", &["--compress=XPRESS"]),
        ("none", &["--compress=none"]),
    ] {
        let wim = media(&shelf.dir.0, "boot.wim", options);
        let said = shelf.ask(&["add", name, path(&wim)]);
        assert_eq!(warnings(&said), [""; 0], "{said}");
        assert!(said.contains("boot index 2") && said.contains("10.0.26100"), "{said}");
        fs::remove_file(wim).expect("the source is not needed any more");
    }
    let listed = shelf.ask(&["list"]);
    assert!(!listed.contains("cannot boot") && listed.contains("Microsoft Windows Setup (x64)"), "{listed}");
    let shown = shelf.json(&["show", "lzx", "--json"]);
    assert_eq!((&shown["version"], &shown["wims"][0]["integrity"]), (&1.into(), &true.into()));
    assert_eq!(shown["wims"][0]["images"][1]["arch"], "x64");
    assert!(shelf.ask(&["verify", "--all"]).contains("3 of 3 files"));
    assert!(shelf.json(&["show", "lzx", "--json"])["verified_unix"].is_u64());
    // One byte, in the middle, with the time put back: as a failing disk does it.
    let wim = shelf.dir.join("images/xpress/boot.wim");
    let modified = fs::metadata(&wim).and_then(|meta| meta.modified()).expect("a time");
    let file = File::options().write(true).open(&wim).expect("the image");
    file.write_all_at(b"\xee", 5000).expect("one byte");
    file.set_modified(modified).expect("the old time");
    let (code, said) = shelf.outcome(&["verify", "--all"]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("xpress: boot.wim: not what was taken in") && said.contains("disk"), "{said}");
    assert_eq!(shelf.outcome(&["verify", "lzx"]).0, 0);
}

#[test]
fn what_is_wrong_with_a_wim_is_said_exactly() {
    let shelf = Shelf::new();
    let dir = &shelf.dir.0;
    let good = fs::read(media(dir, "good.wim", &["--compress=LZX", "--check"])).expect("a WIM");
    let changed = |name: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        fs::write(dir.join(name), bytes).expect("a file");
        dir.join(name)
    };
    for (file, reason) in [
        (
            changed("corrupt.wim", &|bytes| bytes[100_000] ^= 0x10),
            "chunk 0 does not match the integrity table",
        ),
        (changed("truncated.wim", &|bytes| bytes.truncate(150_000)), "truncated: blob table ends at byte"),
        (changed("front.wim", &|bytes| bytes.truncate(100)), "truncated: 100 bytes where 208 are needed"),
        (changed("writing.wim", &|bytes| bytes[16] |= 0x40), "marked as being written"),
        (changed("index.wim", &|bytes| bytes[120] = 9), "boot index 9, but the WIM has 2 images"),
        (changed("text.wim", &|bytes| *bytes = b"hello ".repeat(100)), "not a WIM file"),
        (changed("empty.wim", &|bytes| bytes.clear()), "truncated: 0 bytes"),
    ] {
        let (code, said) = shelf.outcome(&["add", "bad", path(&file)]);
        assert_eq!(code, 1, "{said}");
        assert!(said.contains(reason) && said.trim_end().lines().count() == 1, "{reason}: {said}");
        shelf.has_nothing_of("bad");
    }
    let source = content(dir);
    wimlib(&["capture", path(&source), path(&dir.join("lzms.wim")), "x", "--compress=LZMS", "--boot"]);
    wimlib(&["capture", path(&source), path(&dir.join("solid.esd")), "x", "--solid", "--boot"]);
    wimlib(&["capture", path(&source), path(&dir.join("pipe.wim")), "x", "--pipable", "--boot"]);
    wimlib(&["capture", path(&source), path(&dir.join("whole.wim")), "x", "--compress=none", "--boot"]);
    wimlib(&["split", path(&dir.join("whole.wim")), path(&dir.join("part.swm")), "0.2"]);
    fs::rename(dir.join("part.swm"), dir.join("part.wim")).expect("a part by another name");
    for (file, doubt) in [
        ("lzms.wim", "compressed with LZMS, which wimboot cannot read"),
        ("solid.esd", "a solid WIM (ESD), which wimboot cannot read"),
        ("pipe.wim", "a pipable WIM, which wimboot cannot read"),
        ("part.wim", "part 1 of a WIM split in"),
    ] {
        let said = shelf.ask(&["add", "doubtful", path(&dir.join(file))]);
        let doubts = warnings(&said);
        assert!(doubts.iter().any(|line| line.contains(doubt) && line.contains(file)), "{said}");
        let listed = shelf.ask(&["list"]);
        assert!(listed.contains("cannot boot"), "{listed}");
    }
}

/// `key: value` lines of one block of what wiminfo prints.
fn told<'t>(block: &'t str, key: &str) -> Option<&'t str> {
    let line = block.lines().find(|line| line.split(':').next() == Some(key))?;
    Some(line.split_once(':')?.1.trim())
}

/// Compares what was read of a WIM with what wimlib prints of it; how many images it has.
fn compare(wim: &Value, printed: &str) -> usize {
    let (head, rest) = printed.split_once("Available Images:").unwrap_or((printed, ""));
    let number = |value: &Value| value.as_u64().map(|number| number.to_string()).unwrap_or_default();
    assert_eq!(
        told(head, "GUID"),
        Some(format!("0x{}", wim["guid"].as_str().expect("a GUID")).as_str()),
        "{printed}"
    );
    assert_eq!(told(head, "Boot Index"), Some(number(&wim["boot_index"]).as_str()), "{printed}");
    let compression = wim["compression"].as_str().expect("a word").to_uppercase();
    assert_eq!(told(head, "Compression").map(str::to_uppercase), Some(compression), "{printed}");
    assert_eq!(
        told(head, "Chunk Size"),
        Some(format!("{} bytes", number(&wim["chunk_len"])).as_str()),
        "{printed}"
    );
    let part = format!("{}/{}", number(&wim["part"]), number(&wim["parts"]));
    assert_eq!(told(head, "Part Number"), Some(part.as_str()), "{printed}");
    let attributes = told(head, "Attributes").unwrap_or_default();
    assert_eq!(attributes.contains("Integrity info"), wim["integrity"] == true, "{printed}");
    assert_eq!(attributes.contains("Pipable"), wim["pipable"] == true, "{printed}");
    let images = wim["images"].as_array().expect("images");
    assert_eq!(told(head, "Image Count"), Some(images.len().to_string().as_str()), "{printed}");
    let blocks: Vec<&str> = rest.split("\nIndex:").skip(1).collect();
    assert_eq!(blocks.len(), images.len(), "{printed}");
    for (image, block) in images.iter().zip(blocks) {
        let block = format!("Index:{block}");
        for (key, field) in [
            ("Index", "index"),
            ("Directory Count", "directories"),
            ("File Count", "files"),
            ("Total Bytes", "bytes"),
            ("Hard Link Bytes", "hard_link_bytes"),
        ] {
            assert_eq!(told(&block, key), Some(number(&image[field]).as_str()), "{key}\n{printed}");
        }
        for (key, field) in [
            ("Name", "name"),
            ("Description", "description"),
            ("Display Name", "display_name"),
            ("Flags", "flags"),
            ("Edition ID", "edition"),
            ("Product Name", "product"),
            ("Installation Type", "installation_type"),
            ("Default Language", "default_language"),
        ] {
            let printed_as = told(&block, key).filter(|text| !text.is_empty());
            // Blanks at the ends are not kept, and a tab is one blank here.
            let printed_as = printed_as.map(|text| text.replace('\t', " "));
            assert_eq!(printed_as.as_deref(), image[field].as_str(), "{key}\n{printed}");
        }
        let arch = told(&block, "Architecture").map(|word| match word {
            "x86_64" => "x64",
            "x86" => "x86",
            "ARM64" => "arm64",
            "ARM" => "arm32",
            _ => "other",
        });
        assert_eq!(arch, image["arch"].as_str(), "{printed}");
        let languages: Vec<&str> = told(&block, "Languages").unwrap_or_default().split_whitespace().collect();
        let read: Vec<&str> =
            image["languages"].as_array().expect("languages").iter().filter_map(Value::as_str).collect();
        assert_eq!(languages, read, "{printed}");
        if let Some(version) = image["version"].as_str() {
            let parts =
                ["Major Version", "Minor Version", "Build"].map(|key| told(&block, key).unwrap_or_default());
            assert_eq!(parts.join("."), version, "{printed}");
        }
    }
    images.len()
}

#[test]
fn what_is_read_of_many_wims_is_what_wimlib_prints() {
    const NAMES: [&str; 8] = [
        "plain",
        "Ünïcödé 窓 𝄞",
        "<angle> & \"quotes\" 'both'",
        "a very long name, longer than a screen is wide, so that whoever cuts names short would be found out here",
        "${dollar} %percent% \\backslash",
        "tab\tinside",
        "dash - inside -",
        "Windows 11 (x64) 24H2",
    ];
    let count: usize = if std::env::var_os("LAB_ALL").is_some() { 300 } else { 40 };
    let shelf = Shelf::new();
    let source = content(&shelf.dir.0);
    fs::write(source.join("linked"), "twice").expect("a file");
    fs::hard_link(source.join("linked"), source.join("Windows/linked")).expect("a hard link");
    let empty = shelf.dir.join("empty");
    fs::create_dir_all(&empty).expect("an empty folder");
    let compressions = ["none", "XPRESS", "LZX", "LZMS"];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut pick = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    for n in 0..count {
        let folder = shelf.dir.join(&format!("images/zoo{}", n / 100));
        fs::create_dir_all(&folder).expect("a folder");
        let wim = folder.join(format!("{n}.wim"));
        let kind = pick(6);
        let images = 1 + pick(3);
        for index in 0..images {
            let from = if pick(4) == 0 { &empty } else { &source };
            let name = format!("{} {index}", NAMES[pick(NAMES.len())]);
            let verb = if index == 0 { "capture" } else { "append" };
            let mut words = vec![verb, path(from), path(&wim), &name, NAMES[pick(NAMES.len())]];
            let compress = format!("--compress={}", compressions[kind.min(3)]);
            if index == 0 {
                match kind {
                    4 => words.push("--solid"),
                    5 => words.push("--pipable"),
                    _ => words.push(&compress),
                }
                if kind == 2 && pick(3) == 0 {
                    words.push("--chunk-size=64K");
                }
            }
            if pick(2) == 0 {
                words.push("--boot");
            }
            if pick(2) == 0 && kind != 5 {
                words.push("--check");
            }
            let properties = [
                format!("--image-property=WINDOWS/ARCH={}", [0, 5, 9, 12, 6][pick(5)]),
                format!("--image-property=WINDOWS/VERSION/BUILD={}", 7600 + pick(20_000)),
                "--image-property=WINDOWS/VERSION/MAJOR=10".to_owned(),
                "--image-property=WINDOWS/VERSION/MINOR=0".to_owned(),
                format!("--image-property=WINDOWS/EDITIONID={}", ["WindowsPE", "Professional"][pick(2)]),
                format!("--image-property=WINDOWS/PRODUCTNAME={}", NAMES[pick(NAMES.len())]),
                "--image-property=WINDOWS/LANGUAGES/LANGUAGE[1]=en-US".to_owned(),
                "--image-property=WINDOWS/LANGUAGES/LANGUAGE[2]=de-DE".to_owned(),
                "--image-property=WINDOWS/LANGUAGES/DEFAULT=de-DE".to_owned(),
                format!("--image-property=DISPLAYNAME={}", NAMES[pick(NAMES.len())]),
                "--image-property=FLAGS=9".to_owned(),
            ];
            if pick(3) > 0 {
                words.extend(properties.iter().map(String::as_str));
            }
            wimlib(&words);
        }
    }
    let mut images = 0;
    for zoo in 0..count.div_ceil(100) {
        let shown = shelf.json(&["show", &format!("zoo{zoo}"), "--json"]);
        let wims = shown["wims"].as_array().expect("WIMs");
        assert_eq!(wims.len(), (count - zoo * 100).min(100));
        for wim in wims {
            let file = shelf.dir.join(&format!("images/zoo{zoo}/{}", wim["file"].as_str().expect("a name")));
            assert_eq!(wim["len"], fs::metadata(&file).expect("the WIM").len());
            images += compare(wim, &wimlib(&["info", path(&file)]));
        }
    }
    assert!(images >= count, "{images} images compared");
}

/// A small WIM whose tables stand behind 4.5 GiB of nothing.
fn large_wim(folder: &Path) -> PathBuf {
    let source = content(folder);
    let small = folder.join("small.wim");
    wimlib(&["capture", path(&source), path(&small), "Large", "--compress=none", "--boot"]);
    let mut bytes = fs::read(&small).expect("a WIM");
    let word =
        |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    // Offsets of blob table and XML in the header; both stand behind the files.
    let (table, xml) = (word(&bytes, 56), word(&bytes, 80));
    let cut = table.min(xml);
    let moved = (9 << 29) - cut;
    for at in [56, 80] {
        let place = word(&bytes, at) + moved;
        bytes[at..at + 8].copy_from_slice(&place.to_le_bytes());
    }
    let large = folder.join("large.wim");
    let file = File::create(&large).expect("a file");
    file.write_all_at(&bytes[..cut as usize], 0).expect("the front");
    file.write_all_at(&bytes[cut as usize..], cut + moved).expect("the tables");
    large
}

#[test]
fn a_wim_of_four_and_a_half_gigabytes_is_taken_with_a_warning_and_stays_sparse() {
    let shelf = Shelf::new();
    let wim = large_wim(&shelf.dir.0);
    assert!(wimlib(&["info", path(&wim)]).contains("Large"), "wimlib reads it too");
    let said = shelf.ask(&["add", "large", path(&wim)]);
    assert!(warnings(&said).iter().any(|line| line.contains("32-bit iPXE")), "{said}");
    let meta = fs::metadata(shelf.dir.join("images/large/large.wim")).expect("the image");
    assert!(
        meta.len() > 4 << 30 && meta.blocks() * 512 < 64 << 20,
        "{} bytes on the disk",
        meta.blocks() * 512
    );
    let listed = shelf.ask(&["list"]);
    assert!(listed.contains("4.5 GiB") && listed.contains("32-bit iPXE"), "{listed}");
    assert_eq!(shelf.json(&["show", "large", "--json"])["wims"][0]["images"][0]["name"], "Large");
}

fn script(text: &str) -> String {
    format!("#!ipxe\necho {text}\n")
}

#[test]
fn versions_are_kept_gone_back_to_and_removed_without_a_server() {
    let shelf = Shelf::new();
    let file = shelf.dir.join("boot.ipxe");
    for text in ["one", "two", "three", "four"] {
        fs::write(&file, script(text)).expect("a script");
        shelf.ask(&["add", "lab", path(&file), "--title", text, "--json"]);
    }
    let served = || fs::read_to_string(shelf.dir.join("images/lab/boot.ipxe")).expect("the image");
    let numbers = || -> Vec<u64> {
        let list = shelf.json(&["versions", "lab", "--json"]);
        list["versions"].as_array().expect("versions").iter().filter_map(|v| v["version"].as_u64()).collect()
    };
    assert_eq!((served(), numbers()), (script("four"), vec![4, 3, 2]), "two earlier ones are kept");
    assert!(shelf.ask(&["rollback", "lab"]).contains("version 3 again"));
    assert_eq!((served(), numbers()), (script("three"), vec![3, 4, 2]));
    assert!(shelf.ask(&["list"]).contains("three"), "settings go back with the files");
    shelf.ask(&["rollback", "lab", "4"]);
    assert_eq!(served(), script("four"));
    for (words, code, word) in [
        (&["rollback", "lab", "9"][..], 1, "no version 9"),
        (&["rollback", "lab", "4"], 1, "the one that is served"),
        (&["rollback", "none"], 1, "no image"),
        (&["remove", "lab", "--version", "4"], 1, "the one that is served"),
        (&["remove", "none"], 1, "no image"),
        (&["verify", "none"], 1, "no image"),
        (&["add", "../evil", path(&file)], 2, "no name for an image"),
        (&["add", "lab", path(&file), "--new"], 1, "lab already"),
        (&["add", "lab", "/nowhere/x"], 1, "no such file"),
    ] {
        let (exit, said) = shelf.outcome(words);
        assert!(exit == code && said.contains(word), "{words:?}: {exit} {said}");
    }
    shelf.ask(&["remove", "lab", "--version", "2"]);
    assert_eq!(numbers(), [4, 3]);
    shelf.ask(&["remove", "lab"]);
    shelf.has_nothing_of("lab");
    assert!(!shelf.dir.join("images/.versions/lab").exists());
}

#[test]
fn a_full_disk_and_a_kill_leave_nothing_half() {
    let shelf = Shelf::new();
    let big = shelf.dir.join("big.bin");
    let mut file = File::create(&big).expect("a file");
    let noise: Vec<u8> = (0..1u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8 | 1).collect();
    for _ in 0..256 {
        file.write_all(&noise).expect("a megabyte");
    }
    // A file system of 64 MiB of its own, gone with the command.
    let images = shelf.dir.join("images");
    let text = format!(
        "mount -t tmpfs -o size=64m none '{images}' && '{bin}' image add big '{big}' --images '{images}' --state '{state}'; \
         code=$?; find '{images}' -mindepth 1 -not -path '*/.staging*' | grep . && exit 99; exit $code",
        images = images.display(),
        bin = binary(),
        big = big.display(),
        state = shelf.dir.join("state").display()
    );
    let output = Command::new(tool("unshare", "util-linux")).args(["-m", "bash", "-c", &text]).output();
    let output = output.expect("unshare runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(5), "{said}");
    assert!(said.contains("no space in") && said.contains("nothing was taken"), "{said}");

    let mut add = Command::new(binary());
    add.args(["image", "add", "big"]).arg(&big).arg("--images").arg(&images);
    add.arg("--state").arg(shelf.dir.join("state"));
    let mut process = Process::spawn("image add", &mut add, &shelf.dir.join("add.log"));
    let start = Instant::now();
    let half = || {
        let staged = fs::read_dir(images.join(".staging")).into_iter().flatten().flatten();
        staged.map(|entry| entry.path().join("big.bin")).find(|file| file.exists())
    };
    while half().is_none() {
        assert!(start.elapsed() < SOON, "nothing is staged");
        std::thread::sleep(Duration::from_millis(1));
    }
    process.signal("KILL");
    process.wait(SOON);
    assert!(half().is_some(), "killed in the middle");
    assert!(!images.join("big").exists() && shelf.ask(&["list"]).contains("no images"));
    // The next command tidies up.
    let small = shelf.dir.join("boot.ipxe");
    fs::write(&small, script("small")).expect("a script");
    shelf.ask(&["add", "small", path(&small)]);
    shelf.has_nothing_of("big");
}

/// A machine of its own on the server's bridge, that fetches.
fn client(net: &Net, addr: &str) -> Namespace {
    let place = Namespace::new();
    let name = format!("c{}", labkit::unique());
    net.server.wire(&name, &place, "eth0");
    net.server.ip(&format!("link set {name} master {}", net.interface));
    place.ip(&format!("addr add {addr}/24 dev eth0"));
    place
}

fn fetch(place: &Namespace, url: &str) -> Output {
    let mut curl = place.command(tool("curl", "curl"));
    curl.args(["-sS", "-f", "--max-time", "60", url]).output().expect("curl runs")
}

/// Waits until a URL gives `wanted`.
fn wait_for(place: &Namespace, url: &str, wanted: &[u8], patience: Duration) {
    let start = Instant::now();
    while fetch(place, url).stdout != wanted {
        assert!(start.elapsed() < patience, "{url} is not what it should be after {patience:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// `count` downloads at once at a limited rate, into files of `folder`.
fn downloads(place: &Namespace, folder: &Path, url: &str, count: usize, rate: &str) -> Process {
    let config: String = (0..count)
        .map(|n| {
            format!(
                "url = \"{url}\"\noutput = \"{}\"\nlimit-rate = {rate}\nfail\n",
                folder.join(n.to_string()).display()
            )
        })
        .collect();
    let file = folder.join("config");
    fs::write(&file, config).expect("curl's configuration");
    let mut curl = place.command(tool("curl", "curl"));
    curl.args([
        "--no-progress-meter",
        "--parallel",
        "--parallel-immediate",
        "--parallel-max",
        &count.to_string(),
    ]);
    curl.args(["--write-out", "%{exitcode} %{filename_effective}\\n", "--config"]).arg(&file);
    Process::spawn("curl", &mut curl, &folder.join("said"))
}

/// Waits until every one of `count` downloads has begun.
fn wait_until_begun(folder: &Path, count: usize) {
    let start = Instant::now();
    let has_begun = |n: usize| fs::metadata(folder.join(n.to_string())).is_ok_and(|meta| meta.len() > 0);
    while !(0..count).all(has_begun) {
        assert!(start.elapsed() < SOON, "not all downloads have begun");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Descriptors and mappings the server holds of files that have no name any more.
fn deleted(server: &Server<'_>) -> usize {
    let proc = PathBuf::from(format!("/proc/{}", server.process.pid()));
    let links = fs::read_dir(proc.join("fd")).into_iter().flatten().flatten();
    let is_deleted = |entry: &fs::DirEntry| {
        fs::read_link(entry.path()).is_ok_and(|to| to.to_string_lossy().contains("data.bin (deleted)"))
    };
    let maps = fs::read_to_string(proc.join("maps")).unwrap_or_default();
    links.filter(is_deleted).count() + maps.lines().filter(|line| line.contains("data.bin (deleted)")).count()
}

#[test]
fn replacing_an_image_during_two_hundred_downloads_gives_each_one_version() {
    const COUNT: usize = 200;
    let net = Net::flat();
    let site = Site::new(net.interface, "auto", FULL);
    let source = site.dir.join("data.bin");
    let (old, new) = (vec![b'1'; 4 << 20], vec![b'2'; 4 << 20]);
    fs::write(&source, &old).expect("the first version");
    site.ask(&["image", "add", "data", path(&source)]);
    let server = site.serve(&net);
    let place = client(&net, "10.77.0.9");
    let url = "http://10.77.0.1:4433/images/data/data.bin";
    let folder = site.dir.join("got");
    fs::create_dir_all(&folder).expect("a folder");
    let mut curl = downloads(&place, &folder, url, COUNT, "1M");
    wait_until_begun(&folder, COUNT);
    fs::write(&source, &new).expect("the second version");
    let said = site.ask(&["image", "add", "data", path(&source), "--keep", "0"]);
    assert!(said.contains("version 2"), "{said}");
    // The server was told: who comes now gets the new one.
    assert!(fetch(&place, url).stdout == new, "a new download gets the new version at once");
    assert!(deleted(&server) > 0, "the old version is still being read");
    assert!(curl.wait(Duration::from_secs(120)).success(), "{}", curl.output());
    for n in 0..COUNT {
        assert!(
            fs::read(folder.join(n.to_string())).expect("a download") == old,
            "download {n} is not one version"
        );
    }
    let start = Instant::now();
    while deleted(&server) > 0 {
        assert!(start.elapsed() < SOON, "the old version is held after its last reader");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(server.metric(&net, "bootstorm_files_changed_total"), 0);
    server.stop();
}

#[test]
fn a_copy_over_a_live_file_gives_nobody_mixed_bytes_as_good() {
    const COUNT: usize = 30;
    let net = Net::flat();
    let site = Site::new(net.interface, "auto", FULL);
    let (old, new) = (vec![b'1'; 12 << 20], vec![b'2'; 12 << 20]);
    let live = site.dir.join("images/data/data.bin");
    fs::create_dir_all(site.dir.join("images/data")).expect("a folder");
    fs::write(&live, &old).expect("the first version");
    let copy = site.dir.join("other.bin");
    fs::write(&copy, &new).expect("the second version");
    let server = site.serve(&net);
    let place = client(&net, "10.77.0.9");
    let url = "http://10.77.0.1:4433/images/data/data.bin";
    let folder = site.dir.join("got");
    fs::create_dir_all(&folder).expect("a folder");
    let mut cut = 0;
    // Early, in the middle, and when most have nearly all of it.
    for (round, wait) in [0u64, 600, 1400].into_iter().enumerate() {
        fs::write(&live, &old).expect("the first version");
        wait_for(&place, url, &old, Duration::from_secs(30));
        let mut curl = downloads(&place, &folder, url, COUNT, "8M");
        wait_until_begun(&folder, COUNT);
        std::thread::sleep(Duration::from_millis(wait));
        run(Command::new("cp").arg(&copy).arg(&live));
        curl.wait(Duration::from_secs(60));
        let said = curl.output();
        let ends: Vec<(&str, &str)> = said.lines().filter_map(|line| line.split_once(' ')).collect();
        let ends: Vec<_> = ends.into_iter().filter(|(code, _)| code.parse::<u8>().is_ok()).collect();
        assert_eq!(ends.len(), COUNT, "{said}");
        for (code, file) in ends {
            if code == "0" {
                let got = fs::read(file).expect("a download");
                assert!(got == old || got == new, "round {round}: {file} is mixed and was taken for good");
            } else {
                cut += 1;
            }
        }
        wait_for(&place, url, &new, Duration::from_secs(30));
    }
    assert!(cut > 0, "no download was running when the file was copied over");
    assert!(server.metric(&net, "bootstorm_files_changed_total") > 0);
    server.stop();
}

#[test]
fn a_file_dropped_in_by_hand_is_served_when_it_is_whole() {
    let net = Net::flat();
    let site = Site::new(net.interface, "auto", FULL);
    let server = site.serve(&net);
    let place = client(&net, "10.77.0.9");
    let folder = site.dir.join("images/data");
    fs::create_dir_all(&folder).expect("a folder");
    let url = "http://10.77.0.1:4433/images/data/data.bin";
    let status = || {
        let mut curl = place.command(tool("curl", "curl"));
        run(curl.args(["-sS", "-o", "/dev/null", "-w", "%{http_code}", url]))
    };
    // A slow copy, that pauses for longer than a file has to rest, and has its old time put back meanwhile.
    let mut file = File::create(folder.join("data.bin")).expect("a file");
    let old = std::time::SystemTime::now() - Duration::from_secs(3600);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(4) {
        if begun.elapsed() < Duration::from_millis(500) {
            file.write_all(&[7; 100_000]).expect("a piece");
            file.set_modified(old).expect("another time");
        }
        assert_eq!(status(), "404", "half a file is served after {:?}", begun.elapsed());
        std::thread::sleep(Duration::from_millis(100));
    }
    file.write_all(&[8; 100_000]).expect("the last piece");
    drop(file);
    let whole = fs::read(folder.join("data.bin")).expect("the file");
    wait_for(&place, url, &whole, Duration::from_secs(10));
    // Renamed into place: at once, as soon as the kernel tells. Two seconds is when it would be looked at anyway.
    fs::write(folder.join(".new"), b"renamed").expect("a file");
    fs::rename(folder.join(".new"), folder.join("data.bin")).expect("a rename");
    wait_for(&place, url, b"renamed", Duration::from_secs(10));
    // What is no payload is not served, and what is for boots is not for everybody.
    for (name, bytes) in
        [("image.toml", &b"access = \"boot\"\n"[..]), (".version.json", b"{}"), ("private/x", b"x")]
    {
        fs::create_dir_all(folder.join("private")).expect("a folder");
        fs::write(folder.join(name), bytes).expect("a file");
    }
    let start = Instant::now();
    while status() == "200" {
        assert!(start.elapsed() < SOON, "access = \"boot\" does not close it");
        std::thread::sleep(Duration::from_millis(50));
    }
    for name in ["image.toml", ".version.json", "private/x", ".staging/x"] {
        let output = fetch(&place, &format!("http://10.77.0.1:4433/images/data/{name}"));
        assert!(!output.status.success(), "{name} is served");
    }
    server.stop();
}

#[test]
fn an_image_that_a_job_needs_is_not_removed_with_or_without_a_server() {
    let net = Net::flat();
    let site = Site::new(net.interface, "auto", FULL);
    fs::create_dir_all(site.dir.join("loaders")).expect("a folder");
    let wim = media(&site.dir.0, "boot.wim", &["--compress=LZX", "--check"]);
    let wimboot = site.dir.join("wimboot");
    fs::copy(labkit::kernel(), &wimboot).expect("the stand-in for wimboot");
    let server = site.serve(&net);
    let said = site.ask(&["image", "add", "winpe", path(&wim), path(&wimboot)]);
    assert!(warnings(&said).is_empty(), "{said}");
    site.ask(&["image", "verify", "winpe"]);
    site.ask(&["job", "add", "winpe", "--mac", "52:54:00:00:00:01"]);
    let text =
        site.ask(&["script", "render", "--mac", "52:54:00:00:00:01", "--platform", "efi", "--arch", "7"]);
    assert!(text.contains("/images/winpe/boot.wim") && text.contains("wimboot"), "{text}");
    let refused = |site: &Site| {
        let output = site.command(&["image", "remove", "winpe"]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(
            said.contains("needed by job j1") && site.dir.join("images/winpe/boot.wim").exists(),
            "{said}"
        );
    };
    refused(&site);
    let audit = site.ask(&["audit", "list"]);
    assert!(audit.contains("image-added") && audit.contains("image winpe"), "{audit}");
    server.stop();
    // Nobody answers on the socket: the store says the same.
    refused(&site);
    site.ask(&["image", "verify", "winpe"]);
    let server = site.serve(&net);
    site.ask(&["job", "cancel", "j1"]);
    site.ask(&["image", "remove", "winpe"]);
    assert!(!site.dir.join("images/winpe").exists());
    let audit = site.ask(&["audit", "list"]);
    assert_eq!(audit.matches("image-verified").count(), 2, "with and without a server\n{audit}");
    assert!(audit.contains("image-removed"), "{audit}");
    assert!(site.ask(&["audit", "verify"]).contains("is whole"));
    server.stop();
}

/// An image verb in the server's own images folder, behind what starts it.
fn verb_in_state(shelf: &Shelf, mut starter: Command, words: &[&str]) -> Command {
    starter.arg("image").args(words).arg("--config").arg(shelf.dir.join("c.toml"));
    starter.arg("--images").arg(shelf.dir.join("state/images")).arg("--state").arg(shelf.dir.join("state"));
    starter
}

/// As a careful administrator's shell runs it: as root, with a umask that shows nothing to anybody.
fn as_root(shelf: &Shelf, words: &[&str]) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", "umask 077; exec \"$@\"", "sh", binary()]);
    verb_in_state(shelf, shell, words)
}

/// The same as the server's user.
fn as_nobody(shelf: &Shelf, words: &[&str]) -> Command {
    let program = shelf.dir.join("bootstorm");
    if !program.exists() {
        fs::copy(binary(), &program).expect("it can be copied");
    }
    let mut setpriv = Command::new(tool("setpriv", "util-linux"));
    setpriv.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program);
    verb_in_state(shelf, setpriv, words)
}

/// Everything below a folder, and itself.
fn all_in(folder: &Path) -> Vec<PathBuf> {
    let (mut found, mut open) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(place) = open.pop() {
        if fs::symlink_metadata(&place).expect("there").is_dir() {
            open.extend(fs::read_dir(&place).expect("a folder").flatten().map(|entry| entry.path()));
        }
        found.push(place);
    }
    found
}

/// A shelf whose state folder is the server's user's, as after its first start.
fn shelf_of_nobody() -> Shelf {
    let shelf = Shelf::new();
    chown(shelf.dir.join("state"), Some(65_534), Some(65_534)).expect("as root");
    fs::set_permissions(&shelf.dir.0, fs::Permissions::from_mode(0o755)).expect("its own");
    shelf
}

#[test]
fn what_root_does_in_the_images_folder_is_its_owners() {
    let shelf = shelf_of_nobody();
    // Readable for root alone, as what is named may be.
    let source = shelf.dir.join("media");
    fs::create_dir_all(source.join("x64")).expect("a folder");
    fs::create_dir_all(source.join("private")).expect("a folder");
    for (name, text) in [("boot.ipxe", "#!ipxe\n"), ("x64/file", "one"), ("private/ks.cfg", "secret")] {
        fs::write(source.join(name), text).expect("a file");
    }
    fs::set_permissions(&source, fs::Permissions::from_mode(0o700)).expect("its own");
    let source = path(&source);
    run(&mut as_root(&shelf, &["add", "lab", source, "--title", "Lab"]));
    run(&mut as_root(&shelf, &["add", "lab", source]));
    run(&mut as_root(&shelf, &["add", "lab", source]));
    run(&mut as_root(&shelf, &["rollback", "lab"]));
    run(&mut as_root(&shelf, &["verify", "lab", "--all"]));
    run(&mut as_root(&shelf, &["remove", "lab", "--version", "1"]));
    let images = shelf.dir.join("state/images");
    let all = all_in(&images);
    assert!(all.len() > 15, "{all:?}");
    for place in all {
        let meta = fs::symlink_metadata(&place).expect("there");
        let is_private = place.ancestors().any(|step| step.file_name().is_some_and(|name| name == "private"));
        let wanted = match (meta.is_dir(), is_private) {
            (true, false) => 0o755,
            (true, true) => 0o750,
            (false, false) => 0o644,
            (false, true) => 0o640,
        };
        let found = (meta.uid(), meta.gid(), meta.mode() & 0o7777);
        assert_eq!(found, (65_534, 65_534, wanted), "{}", place.display());
    }
    // The server's user goes on where root was.
    run(&mut as_nobody(&shelf, &["verify", "lab", "--all", "--restart"]));
    run(&mut as_nobody(&shelf, &["rollback", "lab", "3"]));
    // Also with what root put there by hand, and before it was so.
    fs::create_dir_all(images.join("hand/x64")).expect("a folder");
    fs::write(images.join("hand/x64/secret"), "x").expect("a file");
    fs::set_permissions(images.join("hand/x64/secret"), fs::Permissions::from_mode(0o600)).expect("its own");
    for place in [".staging", ".staging/.lock", ".versions", "lab", "lab/x64"] {
        chown(images.join(place), Some(0), Some(0)).expect("as root");
    }
    run(&mut as_root(&shelf, &["add", "hand", source, "--update"]));
    run(&mut as_nobody(&shelf, &["rollback", "hand"]));
    run(&mut as_nobody(&shelf, &["verify", "hand"]));
    run(&mut as_nobody(&shelf, &["remove", "lab"]));
    run(&mut as_nobody(&shelf, &["remove", "hand"]));
}

#[test]
fn no_link_in_the_images_folder_leads_root_out_of_it() {
    let shelf = shelf_of_nobody();
    let (script, victim) = (shelf.dir.join("boot.ipxe"), shelf.dir.join("victim"));
    fs::write(&script, self::script("one")).expect("a script");
    fs::write(&victim, "precious").expect("a file");
    fs::set_permissions(&victim, fs::Permissions::from_mode(0o640)).expect("its own");
    let script = path(&script);
    run(&mut as_root(&shelf, &["add", "lab", script]));
    let images = shelf.dir.join("state/images");
    let plant = |to: &Path, link: &str| {
        let link = images.join(link);
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink(to, link).expect("a link");
    };
    // Each of them is a place where root writes, or reads what is served afterwards.
    for link in [".staging/.lock", ".staging/.verify.json", "lab/.version.json.new", "lab/stolen"] {
        plant(&victim, link);
        for words in [
            &["verify", "lab", "--restart"][..],
            &["verify", "lab", "--accept"],
            &["add", "lab", script, "--update"],
            &["rollback", "lab"],
        ] {
            // Done or refused, as it comes; what counts is where it went.
            as_root(&shelf, words).output().expect("it runs");
        }
        assert_eq!(fs::read_to_string(&victim).expect("there"), "precious", "{link}");
        let _ = fs::remove_file(images.join(link));
    }
    // The planted ones themselves stay in the versions they were put into.
    let is_file = |place: &PathBuf| fs::symlink_metadata(place).expect("there").is_file();
    for place in all_in(&images).into_iter().filter(is_file) {
        let text = fs::read_to_string(&place).unwrap_or_default();
        assert!(!text.contains("precious"), "{}", place.display());
    }
    // A folder of our own that is a link is refused.
    let outside = shelf.dir.join("outside");
    fs::create_dir(&outside).expect("a folder");
    fs::remove_dir_all(images.join(".staging")).expect("its own");
    plant(&outside, ".staging");
    let refused = as_root(&shelf, &["add", "lab", script]).output().expect("it runs");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("is a link or a file"), "{said}");
    assert_eq!(fs::read_dir(&outside).expect("there").count(), 0);
}
