//! Roots that come, stay while they are needed, and go.

use std::collections::BTreeMap;

use super::*;
use crate::ca::secret::{make, read};

const DAY: Duration = Duration::from_secs(24 * 3600);

fn authority(now: SystemTime) -> Authority {
    read(&make(now).unwrap(), DAY, now).unwrap().authority
}

#[test]
fn a_root_is_told_of_first_and_withdrawn_when_nothing_under_it_is_valid() {
    let now = SystemTime::now();
    let (old, new) = (authority(now), authority(now));
    let told = roots(Some(&old), None, &Record::default(), now).unwrap();
    let record = Record::default().next(&told, &old, now);
    assert!(record.holds(&old) && !record.holds(&new));

    // The new one waits.
    let told = roots(Some(&new), Some(&old), &record, now).unwrap();
    assert_eq!(told.len(), 2);
    let record = record.with(&told);
    assert!(record.holds(&old) && record.holds(&new));

    // It signs; the old one is on its way out, also for a process that knows of it from the record
    // alone.
    let told = roots(None, Some(&new), &record, now).unwrap();
    let record = record.next(&told, &new, now);
    assert!(record.holds(&old), "certificates under it are valid");
    let later = now + DAY;
    let told = roots(None, Some(&new), &record, later).unwrap();
    assert_eq!(record.next(&told, &new, later), record, "the date is set once");
    let end = later + PATIENCE + SETTLE;
    let told = roots(None, Some(&new), &record, end).unwrap();
    let record = record.next(&told, &new, end);
    assert!(!record.holds(&old) && record.holds(&new));
    assert_eq!(roots(None, Some(&new), &record, end).unwrap(), new.roots());
}

#[test]
fn a_root_that_is_wanted_again_is_no_longer_on_its_way_out() {
    let now = SystemTime::now();
    let (old, new) = (authority(now), authority(now));
    let told = roots(Some(&new), Some(&old), &Record::default(), now).unwrap();
    let record = Record::default().next(&told, &new, now);
    assert_eq!(record.retiring.len(), 1);
    let back = record.next(&told, &old, now);
    assert!(!back.retiring.contains_key(&fingerprint(&old.roots()[0])));
}

#[test]
fn a_record_is_read_as_it_was_written() {
    let now = SystemTime::now();
    let (old, new) = (authority(now), authority(now));
    let told = roots(Some(&new), Some(&old), &Record::default(), now).unwrap();
    let record = Record::default().next(&told, &new, now);
    assert_eq!(Record::read(&record.write()), Ok(record));
    assert_eq!(Record::read(&BTreeMap::<String, String>::new()), Ok(Record::default()));
    for (key, value, want) in [
        (RECORDED, "x", "anchors.pem holds no certificate"),
        (RETIRING, "x", "retiring.json is not"),
    ] {
        let data = BTreeMap::from([(key.to_owned(), value.to_owned())]);
        let problem = Record::read(&data).unwrap_err();
        assert!(problem.starts_with(want), "{problem}");
    }
}

#[test]
fn roots_have_a_limit_and_one_order() {
    let now = SystemTime::now();
    let all: Vec<_> = (0..=ROOT_LIMIT).map(|_| authority(now)).collect();
    let mut record = Record::default();
    for one in &all[..ROOT_LIMIT - 1] {
        record.roots.extend_from_slice(one.roots());
    }
    let (a, b) = (&all[ROOT_LIMIT - 1], &all[ROOT_LIMIT]);
    let told = roots(Some(a), None, &record, now).unwrap();
    let reversed = Record { roots: told.iter().rev().cloned().collect(), ..Record::default() };
    assert_eq!(roots(Some(a), None, &reversed, now).unwrap(), told);
    assert_eq!(roots(Some(a), Some(b), &record, now), Err(TooMany(ROOT_LIMIT + 1)));
}

#[test]
fn an_issuer_signs_when_everybody_knows_it_or_patience_has_ended() {
    let ready = Progress { recorded: true, connected: 3, active: 3, told_for: SETTLE };
    assert_eq!(decide(ready), Decision::Switch);
    assert_eq!(decide(Progress { connected: 0, active: 0, ..ready }), Decision::Switch);
    for early in [
        Progress { recorded: false, ..ready },
        Progress { active: 2, ..ready },
        Progress { told_for: SETTLE - Duration::from_millis(1), ..ready },
    ] {
        assert_eq!(decide(early), Decision::Wait, "{early:?}");
    }
    let late = Progress { active: 1, told_for: PATIENCE, ..ready };
    assert_eq!(decide(late), Decision::Force { behind: 2 });
    let unrecorded = Progress { recorded: false, told_for: PATIENCE, ..ready };
    assert_eq!(decide(unrecorded), Decision::Force { behind: 0 });
}
