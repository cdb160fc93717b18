//! What machines boot, made on the spot: a tiny Linux that reports itself, and disks that say they were booted.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::{run, tool};

/// What init prints on the serial port, followed by the kernel's command line.
pub const INIT_WORD: &str = "LAB-INIT cmdline:";
/// What a local disk prints on the serial port.
pub const DISK_WORD: &str = "LOCAL DISK BOOTED";

/// The installed cloud kernel.
pub fn kernel() -> PathBuf {
    let mut found: Vec<PathBuf> = fs::read_dir("/boot")
        .expect("/boot is readable")
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-")))
        .filter(|path| path.to_string_lossy().contains("cloud"))
        .collect();
    found.sort();
    found
        .pop()
        .expect("no cloud kernel in /boot: apt-get install --no-install-recommends linux-image-cloud-amd64")
}

/// Writes an initramfs whose init prints [`INIT_WORD`] with the command line and a SHA-256 of every file it finds in
/// `/` besides its own, and powers off.
pub fn initramfs(folder: &Path) -> PathBuf {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"]
        .iter()
        .map(Path::new)
        .find(|path| path.exists())
        .expect("busybox is missing: apt-get install --no-install-recommends busybox-static");
    tool("cpio", "cpio");
    let root = folder.join("initramfs");
    for name in ["bin", "proc", "dev"] {
        fs::create_dir_all(root.join(name)).expect("a folder for the initramfs");
    }
    fs::copy(busybox, root.join("bin/busybox")).expect("busybox can be copied");
    // The kernel gives init the console named last on its command line, which is the serial port.
    let init = format!(
        "#!/bin/busybox sh\n/bin/busybox mount -t proc proc /proc\n\
         for f in /*; do [ -f \"$f\" ] && [ \"$f\" != /init ] && echo \"LAB-FILE $(/bin/busybox sha256sum \"$f\")\"; done\n\
         echo \"{INIT_WORD} $(/bin/busybox cat /proc/cmdline)\"\n/bin/busybox poweroff -f\n"
    );
    fs::write(root.join("init"), init).expect("init can be written");
    fs::set_permissions(root.join("init"), fs::Permissions::from_mode(0o755))
        .expect("init can be made executable");
    let archive = folder.join("initrd.gz");
    run(Command::new("sh")
        .current_dir(&root)
        .arg("-c")
        .arg(format!("find . | cpio --quiet -o -H newc | gzip -1 > '{}'", archive.display())));
    archive
}

/// A BIOS boot program (a network one, or a boot sector) that writes `message` to the first serial port and stops.
pub fn bios_program(message: &str) -> Vec<u8> {
    // xor ax,ax; mov ds,ax; mov si,message; next: lodsb; test al,al; jz done; push ax; mov dx,3FDh;
    // wait: in al,dx; test al,20h; jz wait; pop ax; mov dx,3F8h; out dx,al; jmp next; done: hlt; jmp done; message:
    const CODE: [u8; 31] = [
        0x31, 0xc0, 0x8e, 0xd8, 0xbe, 0x1f, 0x7c, 0xac, 0x84, 0xc0, 0x74, 0x10, 0x50, 0xba, 0xfd, 0x03, 0xec,
        0xa8, 0x20, 0x74, 0xfb, 0x58, 0xba, 0xf8, 0x03, 0xee, 0xeb, 0xeb, 0xf4, 0xeb, 0xfd,
    ];
    let mut program = CODE.to_vec();
    program.extend_from_slice(format!("\r\n{message}\r\n\0").as_bytes());
    program.resize(program.len().max(510), 0);
    program
}

/// An x64 EFI program that shows `message` on the console and stops.
pub fn efi_program(message: &str) -> Vec<u8> {
    // sub rsp,28h; mov rcx,[rdx+40h] (ConOut); lea rdx,[rip+9] (behind the code); call [rcx+8] (OutputString); jmp $.
    const CODE: [u8; 20] = [
        0x48, 0x83, 0xec, 0x28, 0x48, 0x8b, 0x4a, 0x40, 0x48, 0x8d, 0x15, 0x05, 0x00, 0x00, 0x00, 0xff, 0x51,
        0x08, 0xeb, 0xfe,
    ];
    let mut text = CODE.to_vec();
    text.extend(format!("\r\n{message}\r\n\0").encode_utf16().flat_map(u16::to_le_bytes));
    let virtual_len = text.len() as u32;
    text.resize(text.len().next_multiple_of(0x200), 0);
    let mut image = vec![0; 0x400];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"MZ");
    put(0x3c, &0x80u32.to_le_bytes());
    put(0x80, b"PE\0\0");
    // COFF: x86-64, one section, optional header of 240 bytes, executable with large addresses.
    put(0x84, &0x8664u16.to_le_bytes());
    put(0x86, &1u16.to_le_bytes());
    put(0x94, &240u16.to_le_bytes());
    put(0x96, &0x22u16.to_le_bytes());
    let optional = 0x98;
    put(optional, &0x20bu16.to_le_bytes());
    put(optional + 4, &(text.len() as u32).to_le_bytes());
    for (at, value) in
        [(16, 0x1000u32), (20, 0x1000), (32, 0x1000), (36, 0x200), (56, 0x2000), (60, 0x400), (108, 16)]
    {
        put(optional + at, &value.to_le_bytes());
    }
    // An EFI application.
    put(optional + 68, &10u16.to_le_bytes());
    let section = optional + 240;
    put(section, b".text");
    for (at, value) in
        [(8, virtual_len), (12, 0x1000), (16, text.len() as u32), (20, 0x400), (36, 0x6000_0020)]
    {
        put(section + at, &value.to_le_bytes());
    }
    image.extend_from_slice(&text);
    image
}

/// A disk whose boot sector writes [`DISK_WORD`] to the first serial port.
pub fn local_disk(folder: &Path) -> PathBuf {
    let mut sector = bios_program(DISK_WORD);
    sector.resize(1 << 20, 0);
    sector[510..512].copy_from_slice(&[0x55, 0xaa]);
    let path = folder.join("disk.img");
    fs::write(&path, sector).expect("the disk can be written");
    path
}
