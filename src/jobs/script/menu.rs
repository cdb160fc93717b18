//! The menu: one page, and one more for each group of images. There is no other menu anywhere.

use super::builder::Script;
use super::image::{self, Fit, fit};
use super::local::{Disk, local};
use super::{MenuDefault, Policy, Urls, pause};
use crate::jobs::Identity;
use crate::jobs::image::{Image, Images};
use crate::jobs::job::JobId;

/// Items beyond this would not be read by anyone, and make a long script.
const MENU_ITEMS_MAX: usize = 48;
/// Further groups stay on the first page.
const GROUPS_MAX: usize = 16;
/// A menu's script ends about here.
pub(super) const MENU_BYTES_MAX: usize = 192 * 1024;
/// `l` and `s` belong to the local disk and the shell, `0` leads back.
const KEYS: [&str; 33] = [
    "1", "2", "3", "4", "5", "6", "7", "8", "9", "a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "m",
    "n", "o", "p", "q", "r", "t", "u", "v", "w", "x", "y", "z",
];
/// The keys no image can have, in words.
pub const MENU_KEYS_RESERVED: &str = "l, s and 0";

/// The key that an operator names for an image; `None` when it is none or taken by the menu itself.
pub fn menu_key(text: &str) -> Option<char> {
    KEYS.iter().find(|key| **key == text)?.chars().next()
}

/// One line that can be chosen.
enum Entry<'a> {
    Image { index: usize, image: &'a Image },
    Group { index: usize, title: &'a str, images: u64 },
}

pub(super) fn menu(
    script: &mut Script<'_>,
    images: &dyn Images,
    who: &Identity,
    job: Option<JobId>,
    urls: Urls<'_>,
    policy: &Policy,
    disk: Disk<'_>,
) {
    let mut room = MENU_BYTES_MAX;
    let mut left_out = 0u64;
    let mut shown: Vec<&Image> = Vec::new();
    let bootable = images.list().iter().filter(|image| image.boot.is_some() && image.unbootable.is_none());
    // A script with variables has labels of its own, which could be this menu's: it is for jobs.
    let bootable = bootable.filter(|image| image.template.is_none());
    for image in bootable.filter(|image| !matches!(fit(image, who), Fit::Misfit(_))) {
        let needed = image::body_len_max(image, urls);
        if shown.len() < MENU_ITEMS_MAX && needed <= room {
            room -= needed;
            shown.push(image);
        } else {
            left_out += 1;
        }
    }
    // A default that cannot be had, or that wipes, is no default.
    let default = match &policy.menu_default {
        MenuDefault::Local => None,
        MenuDefault::Image(name) => shown.iter().position(|image| image.name == *name && !image.destructive),
    };
    let mut groups: Vec<&str> = shown.iter().filter_map(|image| group(image)).collect();
    groups.sort_unstable();
    groups.dedup();
    groups.truncate(GROUPS_MAX);
    let in_group = |image: &Image, title: &str| {
        group(image).is_some_and(|group| group == title && groups.contains(&group))
    };

    script.raw("set default ");
    match default {
        Some(index) => script.raw("i").number(index as u64).end(),
        None => script.raw("local\n"),
    };
    script.raw(":menu\nmenu bootstorm\n");
    if let Some(mac) = who.mac {
        script.raw("item --gap Machine ").mac(mac).end();
    }
    script.raw("item --key l local Boot from the local disk\n");
    let mut entries: Vec<Entry<'_>> = Vec::new();
    for (index, image) in shown.iter().copied().enumerate() {
        // What is chosen when nobody is there has to be on the first page: an item that is not, is not found.
        if default == Some(index) || !groups.iter().any(|title| in_group(image, title)) {
            entries.push(Entry::Image { index, image });
        }
    }
    for (index, title) in groups.iter().enumerate() {
        let images = shown.iter().filter(|image| in_group(image, title)).count() as u64;
        entries.push(Entry::Group { index, title, images });
    }
    items(script, &entries);
    if left_out > 0 {
        script.raw("item --gap and ").number(left_out).raw(" more on the server\n");
    }
    script.raw("item --key s shell iPXE shell\nchoose --default ${default} ");
    timeout(script, policy);
    script.raw("chosen || goto local\ngoto ${chosen} || goto menu\n");

    for (index, title) in groups.iter().enumerate() {
        script.raw(":g").number(index as u64).raw("\nmenu bootstorm: ").text(title).end();
        script.raw("item --key 0 menu Back\n");
        let members = shown.iter().copied().enumerate().filter(|(_, image)| in_group(image, title));
        let members: Vec<_> = members.map(|(index, image)| Entry::Image { index, image }).collect();
        items(script, &members);
        script.raw("choose --default menu ");
        timeout(script, policy);
        script.raw("chosen || goto menu\ngoto ${chosen} || goto menu\n");
    }

    let mut guarded = false;
    for (index, image) in shown.iter().enumerate() {
        script.raw(":i").number(index as u64).end();
        if image.destructive {
            script.raw("echo ").raw("This may wipe the disk: ").text(&image.title).end();
            script.raw("prompt --key y --timeout 30000 Press y to go on || goto menu\n");
        }
        guarded |= image::body(script, image, who, job, urls);
    }
    debug_assert!(script.len() <= MENU_BYTES_MAX + 32 * 1024);
    // With the old default the same failure would come round for ever with nobody there to see it.
    if !shown.is_empty() {
        script.raw(":failed\necho bootstorm: that broke off or did not start\nset default local\n");
        pause(script);
        script.raw("goto menu\n");
    }
    if guarded {
        script.raw(":misfit\n").raw(image::MISFIT).raw("set default local\n");
        pause(script);
        script.raw("goto menu\n");
    }
    script.raw(":shell\nshell ||\ngoto menu\n:local\n");
    local(script, disk);
}

fn group(image: &Image) -> Option<&str> {
    image.group.as_deref().filter(|group| !group.trim().is_empty())
}

fn timeout(script: &mut Script<'_>, policy: &Policy) {
    if !policy.menu_timeout.is_zero() {
        let ms = policy.menu_timeout.as_millis().clamp(1_000, 86_400_000);
        script.raw("--timeout ").number(ms as u64).raw(" ");
    }
}

/// Keys that operators named first, then what is left in order.
fn items(script: &mut Script<'_>, entries: &[Entry<'_>]) {
    let named = |entry: &Entry<'_>| match entry {
        Entry::Image { image, .. } => {
            image.key.and_then(|key| KEYS.iter().find(|k| k.starts_with(key))).copied()
        }
        Entry::Group { .. } => None,
    };
    let mut taken: Vec<&str> = Vec::new();
    let mut own: Vec<Option<&'static str>> = Vec::new();
    for entry in entries {
        let key = named(entry).filter(|key| !taken.contains(key));
        taken.extend(key);
        own.push(key);
    }
    let mut free = KEYS.iter().copied().filter(|key| !taken.contains(key));
    for (entry, own) in entries.iter().zip(own) {
        script.raw("item ");
        if let Some(key) = own.or_else(|| free.next()) {
            script.raw("--key ").raw(key).raw(" ");
        }
        match entry {
            Entry::Image { index, image } => {
                script.raw("i").number(*index as u64).raw(" ");
                if image.destructive {
                    script.raw("[may wipe the disk] ");
                }
                script.text(&image.title).raw(" (").number(image.bytes().div_ceil(1 << 20)).raw(" MiB)\n");
            }
            Entry::Group { index, title, images } => {
                script.raw("g").number(*index as u64).raw(" ").text(title);
                script.raw(" (").number(*images).raw(") ...\n");
            }
        }
    }
}
