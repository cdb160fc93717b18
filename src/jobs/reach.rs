//! What a boot's token opens: its own boot's files, and nothing else.
//!
//! A token is good for a day, and much can happen to its job meanwhile. What moves a job is decided at the point of no
//! return; here is decided what may be read. The job is looked up by its number as it is now.

use std::fmt;

use super::image::{Access, Image};
use super::job::{Action, Job, Stage};
use super::token::{BootId, Token};

/// Why a token does not open a file. `Display` is a clause for the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shut {
    /// An operator refuses the machine, or the policy excludes it.
    Rejected,
    /// Its job is not known any more.
    NoJob,
    /// The job of this boot is another image's, or no image's.
    OtherImage,
    /// The job was cancelled, has failed, or was armed anew since this boot began.
    Over,
    /// Its script was no menu, or the menu does not show this image.
    NotInMenu,
}

impl fmt::Display for Shut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rejected => "the machine is rejected or excluded",
            Self::NoJob => "the token's job is not known any more",
            Self::OtherImage => "the token's job boots another image",
            Self::Over => "the token's job was cancelled, has failed, or was armed anew since the boot began",
            Self::NotInMenu => "the token's script offered no such image",
        })
    }
}

/// The image that `job` boots under the number `boot`.
///
/// # Errors
///
/// [`Shut::Over`] for a boot that has no part in the job any more, [`Shut::OtherImage`] for a job without an image.
pub fn image_of(job: &Job, boot: BootId) -> Result<&str, Shut> {
    let has_passed = job.passed == Some(boot);
    let action = if boot >= job.floor {
        &job.action
    } else if has_passed && job.step > 0 {
        // Its sequence has gone on to the next image; it goes on with its own.
        job.sequence.get(job.step as usize - 1).ok_or(Shut::Over)?
    } else {
        return Err(Shut::Over);
    };
    // A rule that has expired lets whoever is under way go on. What is cancelled or has failed is over for everyone but
    // the boot that had it.
    if matches!(job.stage, Stage::Cancelled | Stage::Failed) && !has_passed {
        return Err(Shut::Over);
    }
    action.image().ok_or(Shut::OtherImage)
}

/// Whether `token` opens the files of `image`. `job` is the token's job as it is now; `rejected` says that an operator
/// refuses the machine.
///
/// # Errors
///
/// Why it does not.
pub fn opens(token: &Token, job: Option<&Job>, rejected: bool, image: &Image) -> Result<(), Shut> {
    if rejected {
        return Err(Shut::Rejected);
    }
    if token.menu {
        if !is_in_menus(image) {
            return Err(Shut::NotInMenu);
        }
        // A menu that a job gave ends with the job.
        return match job {
            _ if token.job.is_none() => Ok(()),
            Some(job) if is_over(job, token.boot) && image.access == Access::Boot => Err(Shut::Over),
            None if image.access == Access::Boot => Err(Shut::NoJob),
            _ => Ok(()),
        };
    }
    if token.job.is_none() {
        return Err(Shut::NotInMenu);
    }
    let Some(job) = job else { return Err(Shut::NoJob) };
    match image_of(job, token.boot) {
        Ok(name) if name == image.name => Ok(()),
        Ok(_) => Err(Shut::OtherImage),
        // What anybody may read, a boot whose job is over may read as well.
        Err(Shut::Over) if image.access == Access::Open && names(job, &image.name) => Ok(()),
        Err(why) => Err(why),
    }
}

/// The image whose answer files `token` opens: its job's, or of a menu the one that is asked for. Of a job, `asked`
/// needs not be said. Unlike an image's files, these close with the job whoever may read the image.
///
/// # Errors
///
/// Why there is none.
pub fn answers_of<'a>(
    token: &Token,
    job: Option<&'a Job>,
    asked: Option<&'a Image>,
) -> Result<&'a str, Shut> {
    if !token.menu {
        let own = image_of(job.ok_or(Shut::NoJob)?, token.boot)?;
        return if asked.is_none_or(|image| image.name == own) { Ok(own) } else { Err(Shut::OtherImage) };
    }
    match job {
        None if token.job.is_some() => return Err(Shut::NoJob),
        Some(job) if is_over(job, token.boot) => return Err(Shut::Over),
        _ => {}
    }
    asked.filter(|image| is_in_menus(image)).map(|image| image.name.as_str()).ok_or(Shut::NotInMenu)
}

fn is_in_menus(image: &Image) -> bool {
    image.boot.is_some() && image.unbootable.is_none() && image.template.is_none()
}

fn is_over(job: &Job, boot: BootId) -> bool {
    boot < job.floor || matches!(job.stage, Stage::Cancelled | Stage::Failed | Stage::Expired)
}

fn names(job: &Job, image: &str) -> bool {
    std::iter::once(&job.action).chain(&job.sequence).filter_map(Action::image).any(|name| name == image)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::jobs::job::{JobId, JobSpec, Selector};

    fn image(name: &str, access: Access) -> Image {
        let json = serde_json::json!({
            "name": name, "title": name, "kind": "efi", "cpu": null, "platform": null, "args": "", "index": null,
            "destructive": false, "access": access, "boot": { "kind": "efi", "program": "x.efi" },
            "unbootable": null, "warnings": [], "files": [],
        });
        serde_json::from_value(json).unwrap()
    }

    fn token(boot: u64, job: Option<u64>, menu: bool) -> Token {
        Token { boot: BootId(boot), mac: None, job: job.map(JobId), menu, last: 0, expires_unix: 9 }
    }

    fn job(name: &str) -> Job {
        let spec = JobSpec::new(Action::Image(name.into()), Selector::Any);
        Job::new(JobId(1), &spec, false, SystemTime::UNIX_EPOCH)
    }

    #[test]
    fn a_jobs_token_opens_its_own_image_and_no_other() {
        let (a, b) = (image("a", Access::Boot), image("b", Access::Open));
        let live = job("a");
        let of = token(5, Some(1), false);
        assert_eq!(opens(&of, Some(&live), false, &a), Ok(()));
        assert_eq!(opens(&of, Some(&live), false, &b), Err(Shut::OtherImage));
        assert_eq!(opens(&of, Some(&live), true, &a), Err(Shut::Rejected));
        assert_eq!(opens(&of, None, false, &a), Err(Shut::NoJob));
        let expired = Job { stage: Stage::Expired, ..live.clone() };
        assert_eq!(opens(&of, Some(&expired), false, &a), Ok(()), "whoever is under way goes on");
        let waits = Job { action: Action::Wait, ..live };
        assert_eq!(opens(&of, Some(&waits), false, &a), Err(Shut::OtherImage));
    }

    #[test]
    fn what_is_only_for_boots_closes_with_the_job() {
        let (closed, open) = (image("a", Access::Boot), image("a", Access::Open));
        let of = token(5, Some(1), false);
        for over in [
            Job { stage: Stage::Cancelled, ..job("a") },
            Job { stage: Stage::Failed, ..job("a") },
            Job { floor: BootId(6), ..job("a") },
        ] {
            assert_eq!(opens(&of, Some(&over), false, &closed), Err(Shut::Over), "{}", over.stage);
            assert_eq!(opens(&of, Some(&over), false, &open), Ok(()));
            assert_eq!(opens(&of, Some(&over), false, &image("b", Access::Open)), Err(Shut::Over));
        }
        let had = Job { stage: Stage::Failed, passed: Some(BootId(5)), ..job("a") };
        assert_eq!(opens(&of, Some(&had), false, &closed), Ok(()), "the boot that had it reads on");
    }

    #[test]
    fn the_boot_that_passed_goes_on_with_its_own_step_of_a_sequence() {
        let images = ["a", "b"].map(|name| Action::Image(name.into()));
        let next =
            Job { step: 1, sequence: images.to_vec(), passed: Some(BootId(5)), floor: BootId(6), ..job("b") };
        assert_eq!(image_of(&next, BootId(5)), Ok("a"));
        assert_eq!(image_of(&next, BootId(6)), Ok("b"));
        assert_eq!(image_of(&next, BootId(4)), Err(Shut::Over));
    }

    #[test]
    fn answer_files_are_of_the_jobs_image_or_of_the_menus_choice_and_close_with_the_job() {
        let (a, b) = (image("a", Access::Open), image("b", Access::Open));
        let live = job("a");
        let of = token(5, Some(1), false);
        assert_eq!(answers_of(&of, Some(&live), None), Ok("a"));
        assert_eq!(answers_of(&of, Some(&live), Some(&a)), Ok("a"));
        assert_eq!(answers_of(&of, Some(&live), Some(&b)), Err(Shut::OtherImage));
        assert_eq!(answers_of(&token(5, None, false), None, Some(&a)), Err(Shut::NoJob), "a local boot");
        let menu = token(5, None, true);
        assert_eq!(answers_of(&menu, None, Some(&b)), Ok("b"));
        assert_eq!(answers_of(&menu, None, None), Err(Shut::NotInMenu));
        let broken = Image { unbootable: Some("no kernel".into()), ..a.clone() };
        assert_eq!(answers_of(&menu, None, Some(&broken)), Err(Shut::NotInMenu));
        let given = token(5, Some(1), true);
        let shows = Job { action: Action::Menu, ..job("a") };
        assert_eq!(answers_of(&given, Some(&shows), Some(&b)), Ok("b"));
        let over = Job { stage: Stage::Cancelled, ..shows };
        assert_eq!(answers_of(&given, Some(&over), Some(&b)), Err(Shut::Over), "open image or not");
        assert_eq!(answers_of(&given, None, Some(&b)), Err(Shut::NoJob));
    }

    #[test]
    fn a_menus_token_opens_what_the_menu_shows() {
        let (closed, open) = (image("a", Access::Boot), image("a", Access::Open));
        let menu = token(5, None, true);
        assert_eq!(opens(&menu, None, false, &closed), Ok(()));
        assert_eq!(opens(&menu, None, true, &open), Err(Shut::Rejected));
        let broken = Image { unbootable: Some("no kernel".into()), ..open.clone() };
        assert_eq!(opens(&menu, None, false, &broken), Err(Shut::NotInMenu));
        let strange = Image { boot: None, ..open.clone() };
        assert_eq!(opens(&menu, None, false, &strange), Err(Shut::NotInMenu));
        let over = Job { action: Action::Menu, stage: Stage::Cancelled, ..job("a") };
        let given = token(5, Some(1), true);
        assert_eq!(opens(&given, Some(&over), false, &closed), Err(Shut::Over));
        assert_eq!(opens(&given, Some(&over), false, &open), Ok(()));
        let local = token(5, None, false);
        assert_eq!(opens(&local, None, false, &closed), Err(Shut::NotInMenu));
        assert_eq!(opens(&local, None, false, &open), Err(Shut::NotInMenu));
    }
}
