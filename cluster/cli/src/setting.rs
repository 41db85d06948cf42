//! Settings of the cluster, one by one: `blockyard config get|set|reset NAME`. They are stored as one value in which what is left out has
//! its default, so a change of one reads the value and writes it back if nobody else did meanwhile.

use cluster_proto::map::{ClusterSettings, keys};
use cluster_state::{Compare, Txn};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::config::check;
use crate::error::CliError;
use crate::output::{Output, print, table};
use crate::session::Session;
use crate::size::Size;

/// A change is tried so often while others change settings too.
const ATTEMPTS: usize = 20;

/// What a setting's value is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Ratio,
    Switch,
    Count,
    Seconds,
    /// Seconds, 0 for never.
    Interval,
    /// Bytes per second, or none.
    Rate,
}

/// A setting of the cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Setting {
    name: &'static str,
    kind: Kind,
}

/// All settings, in the order in which they are shown. Bounds and defaults are [`ClusterSettings`]'.
const SETTINGS: [Setting; 11] = [
    Setting { name: "near-full-ratio", kind: Kind::Ratio },
    Setting { name: "full-ratio", kind: Kind::Ratio },
    Setting { name: "down-out-seconds", kind: Kind::Seconds },
    Setting { name: "recovery-paused", kind: Kind::Switch },
    Setting { name: "recovery-objects-max", kind: Kind::Count },
    Setting { name: "recovery-share", kind: Kind::Ratio },
    Setting { name: "recovery-bytes-per-second-max", kind: Kind::Rate },
    Setting { name: "rebalance-paused", kind: Kind::Switch },
    Setting { name: "moving-pgs-max", kind: Kind::Count },
    Setting { name: "scrub-interval-seconds", kind: Kind::Interval },
    Setting { name: "deep-scrub-interval-seconds", kind: Kind::Interval },
];

/// Units of time with their seconds.
const TIMES: [(&str, u64); 5] = [("w", 604_800), ("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)];

impl Setting {
    /// The setting of this name.
    pub fn find(name: &str) -> Option<Setting> {
        SETTINGS.into_iter().find(|setting| setting.name == name)
    }

    /// Its value as it is stored, from what a person wrote; null for none.
    fn parse(self, text: &str) -> Result<Value, String> {
        let text = text.trim();
        let wrong = |wanted: &str| format!("{text:?} is no value of {}: give {wanted}", self.name);
        match self.kind {
            Kind::Switch => match text {
                "true" | "on" | "yes" => Ok(true.into()),
                "false" | "off" | "no" => Ok(false.into()),
                _ => Err(wrong("true or false")),
            },
            Kind::Count => text.parse::<u32>().map(Value::from).map_err(|_| wrong("a whole number")),
            Kind::Ratio => {
                let (number, scale) = text.strip_suffix('%').map_or((text, 1.0), |percent| (percent.trim(), 100.0));
                let ratio = number.parse::<f64>().ok().filter(|ratio| ratio.is_finite());
                Ok((ratio.ok_or_else(|| wrong("a share like 0.85 or 85%"))? / scale).into())
            }
            Kind::Interval if text == "never" => Ok(0.into()),
            Kind::Seconds | Kind::Interval => {
                seconds(text).map(Value::from).ok_or_else(|| wrong("seconds, or a time like 10min, 12h or 7d"))
            }
            Kind::Rate if matches!(text, "none" | "null") => Ok(Value::Null),
            Kind::Rate => {
                let bytes = text.strip_suffix("/s").unwrap_or(text).parse::<Size>();
                bytes.map(|size| size.0.into()).map_err(|_| wrong("bytes per second, like 100M, or none"))
            }
        }
    }

    /// A value as people read it.
    fn text(self, value: &Value) -> String {
        match (self.kind, value.as_u64()) {
            (Kind::Interval, Some(0)) => "never".into(),
            (Kind::Seconds | Kind::Interval, Some(seconds)) => duration(seconds),
            (Kind::Rate, Some(bytes)) => format!("{}/s", Size(bytes)),
            (Kind::Rate, None) => "none".into(),
            _ => value.to_string(),
        }
    }
}

/// Seconds in a text like `90`, `10min` or `7d`.
fn seconds(text: &str) -> Option<u32> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let (number, unit): (u64, _) = (number.parse().ok()?, unit.trim());
    let unit = match unit {
        "" => "s",
        "m" => "min",
        unit => unit,
    };
    let (_, scale) = TIMES.iter().find(|(name, _)| *name == unit)?;
    number.checked_mul(*scale)?.try_into().ok()
}

/// Seconds in the largest unit of which they are a multiple; weeks are said in days.
fn duration(seconds: u64) -> String {
    let unit = TIMES[1..].iter().find(|(_, scale)| seconds.is_multiple_of(*scale));
    unit.map_or_else(|| format!("{seconds} s"), |(name, scale)| format!("{} {name}", seconds / scale))
}

/// A setting as shown.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct SettingView {
    name: &'static str,
    value: Value,
    default: Value,
    is_default: bool,
    #[serde(skip)]
    texts: [String; 2],
}

impl SettingView {
    fn new(setting: Setting, all: &Value, defaults: &Value) -> Self {
        let of = |values: &Value| values.get(setting.name).cloned().unwrap_or_default();
        let (value, default) = (of(all), of(defaults));
        let texts = [setting.text(&value), setting.text(&default)];
        Self { name: setting.name, is_default: value == default, value, default, texts }
    }

    fn row(&self) -> [String; 3] {
        let [value, default] = self.texts.clone();
        [self.name.to_owned(), value, if self.is_default { String::new() } else { default }]
    }
}

/// All settings as a table. The third column holds the default of what differs from it.
pub fn settings_table(settings: &ClusterSettings) -> String {
    table(["SETTING", "VALUE", "DEFAULT"], views(settings).iter().map(SettingView::row))
}

/// All settings, also those that are not stored.
pub fn views(settings: &ClusterSettings) -> Vec<SettingView> {
    let json = |settings: &ClusterSettings| serde_json::to_value(settings).unwrap_or_default();
    let (all, defaults) = (json(settings), json(&ClusterSettings::default()));
    SETTINGS.into_iter().map(|setting| SettingView::new(setting, &all, &defaults)).collect()
}

/// Shows a setting: its plain value, as it is stored.
pub async fn get(session: &Session, setting: Setting, out: Output) -> Result<(), CliError> {
    let map = session.map().await?;
    let view = views(&map.settings).into_iter().find(|view| view.name == setting.name);
    match view {
        Some(view) if !out.json => print(&format!("{}\n", view.value)),
        view => out.show(&view, |_| String::new()),
    }
}

/// Changes a setting.
pub async fn set(session: &Session, setting: Setting, text: &str, out: Output) -> Result<(), CliError> {
    let value = setting.parse(text).map_err(CliError::usage)?;
    change(session, setting, value, out).await
}

/// Gives a setting its default again.
pub async fn reset(session: &Session, setting: Setting, out: Output) -> Result<(), CliError> {
    change(session, setting, Value::Null, out).await
}

/// The stored value with one setting changed; null takes it out. Everything else stays as it was written.
fn changed(stored: Option<&[u8]>, setting: Setting, value: &Value) -> Result<Vec<u8>, String> {
    let mut all: Map<String, Value> = match stored {
        Some(bytes) => serde_json::from_slice(bytes).map_err(|e| format!("the stored settings cannot be read: {e}"))?,
        None => Map::new(),
    };
    match value {
        Value::Null => all.remove(setting.name),
        value => all.insert(setting.name.to_owned(), value.clone()),
    };
    serde_json::to_vec(&all).map_err(|e| e.to_string())
}

async fn change(session: &Session, setting: Setting, value: Value, out: Output) -> Result<(), CliError> {
    let name = setting.name;
    for _ in 0..ATTEMPTS {
        let map = session.map().await?;
        let entry = session.store.get(keys::SETTINGS).await?;
        let (stored, revision) = (entry.as_ref().map(|entry| &entry.value[..]), entry.as_ref().map(|e| e.mod_revision));
        let new = changed(stored, setting, &value).map_err(CliError::failed)?;
        check(&map, keys::SETTINGS, &new).map_err(|why| CliError::usage(format!("cannot set {name}: {why}")))?;
        let unchanged = Compare::ModRevision { key: keys::SETTINGS.into(), revision: revision.unwrap_or(0) };
        if !session.store.txn(Txn::new().when(unchanged).put(keys::SETTINGS, &new[..])).await?.succeeded {
            continue;
        }
        let settings = serde_json::from_slice::<ClusterSettings>(&new).unwrap_or_default();
        let view = views(&settings).into_iter().find(|view| view.name == name);
        return out.show(&view, |view| {
            let shown = view.as_ref().map(|view| view.texts[0].clone()).unwrap_or_default();
            format!("{name} is {shown} now")
        });
    }
    Err(CliError::conflict(format!("{name} was not changed: others change settings all the time, try again")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn setting(name: &str) -> Setting {
        Setting::find(name).unwrap_or_else(|| panic!("no {name}"))
    }

    #[test]
    fn every_setting_of_the_schema_is_here() {
        let all = ClusterSettings { recovery_bytes_per_second_max: Some(1 << 20), ..ClusterSettings::default() };
        let json = serde_json::to_value(all).unwrap();
        let mut schema: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
        let mut ours: Vec<&str> = SETTINGS.iter().map(|setting| setting.name).collect();
        schema.sort_unstable();
        ours.sort_unstable();
        assert_eq!(ours, schema);
    }

    #[test]
    fn values_are_read_with_units() {
        for (name, text, value, shown) in [
            ("near-full-ratio", "80%", json!(0.8), "0.8"),
            ("near-full-ratio", " 0.8 ", json!(0.8), "0.8"),
            ("recovery-paused", "on", json!(true), "true"),
            ("rebalance-paused", "no", json!(false), "false"),
            ("moving-pgs-max", "7", json!(7), "7"),
            ("down-out-seconds", "90", json!(90), "90 s"),
            ("down-out-seconds", "10m", json!(600), "10 min"),
            ("scrub-interval-seconds", "12 h", json!(43_200), "12 h"),
            ("scrub-interval-seconds", "never", json!(0), "never"),
            ("deep-scrub-interval-seconds", "2w", json!(1_209_600), "14 d"),
            ("recovery-bytes-per-second-max", "100M", json!(100 << 20), "100 MiB/s"),
            ("recovery-bytes-per-second-max", "100 MiB/s", json!(100 << 20), "100 MiB/s"),
            ("recovery-bytes-per-second-max", "none", json!(null), "none"),
        ] {
            let parsed = setting(name).parse(text).unwrap_or_else(|why| panic!("{why}"));
            assert_eq!(parsed, value, "{text}");
            assert_eq!(setting(name).text(&parsed), shown);
        }
        for (name, text) in [
            ("near-full-ratio", "much"),
            ("full-ratio", "inf"),
            ("recovery-paused", "1"),
            ("moving-pgs-max", "-1"),
            ("moving-pgs-max", "5000000000"),
            ("down-out-seconds", "never"),
            ("down-out-seconds", "7 fortnights"),
            ("down-out-seconds", "8000w"),
            ("down-out-seconds", ""),
            ("recovery-bytes-per-second-max", "1X"),
        ] {
            let why = setting(name).parse(text).unwrap_err();
            assert!(why.contains(name) && why.contains("give"), "{why}");
        }
        assert_eq!(Setting::find("pool/1"), None);
    }

    #[test]
    fn a_change_leaves_the_rest_as_it_was_written() {
        let stored = br#"{"full-ratio":0.9,"recovery-paused":true}"#;
        let changed = |value| String::from_utf8(changed(Some(stored), setting("full-ratio"), &value).unwrap()).unwrap();
        assert_eq!(changed(json!(0.92)), r#"{"full-ratio":0.92,"recovery-paused":true}"#);
        assert_eq!(changed(json!(null)), r#"{"recovery-paused":true}"#);
        assert_eq!(super::changed(None, setting("moving-pgs-max"), &json!(3)).unwrap(), br#"{"moving-pgs-max":3}"#);
        assert!(super::changed(Some(b"[]"), setting("full-ratio"), &json!(0.9)).is_err());
    }

    #[test]
    fn the_table_shows_defaults_of_what_differs() {
        let settings = ClusterSettings { down_out_seconds: 60, ..ClusterSettings::default() };
        let text = settings_table(&settings);
        let line =
            |name: &str| text.lines().find(|line| line.starts_with(name)).map(|line| line.split_whitespace().collect());
        let words: Option<Vec<&str>> = line("down-out-seconds");
        assert_eq!(words.unwrap(), ["down-out-seconds", "1", "min", "10", "min"]);
        let words: Option<Vec<&str>> = line("recovery-bytes");
        assert_eq!(words.unwrap(), ["recovery-bytes-per-second-max", "none"]);
    }
}
