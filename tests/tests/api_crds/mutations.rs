//! What becomes of a good object when one place in it gets another value.

use serde_json::{Value, json};

/// Each with one change below `spec`.
pub(crate) fn of(object: &Value) -> Vec<Value> {
    let mut all = Vec::new();
    let mut places = Vec::new();
    collect("/spec", &object["spec"], &mut places);
    for place in places {
        let there = object.pointer(&place).expect("a place of the object");
        for value in instead_of(&place, there) {
            let mut changed = object.clone();
            *changed.pointer_mut(&place).expect("a place of the object") = value;
            all.push(changed);
        }
        if let Some(changed) = without(object, &place) {
            all.push(changed);
        }
    }
    all
}

fn collect(path: &str, value: &Value, places: &mut Vec<String>) {
    places.push(path.to_owned());
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                collect(&format!("{path}/{}", name.replace('/', "~1")), value, places);
            }
        }
        Value::Array(items) => {
            for (index, value) in items.iter().enumerate() {
                collect(&format!("{path}/{index}"), value, places);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn without(object: &Value, place: &str) -> Option<Value> {
    let (parent, name) = place.rsplit_once('/')?;
    let mut changed = object.clone();
    match changed.pointer_mut(parent)? {
        Value::Object(fields) => drop(fields.remove(&name.replace("~1", "/"))),
        Value::Array(items) => drop(items.remove(name.parse().ok()?)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => return None,
    }
    Some(changed)
}

/// Values of every type, and those that come near to what the place takes.
fn instead_of(place: &str, there: &Value) -> Vec<Value> {
    let mut values = vec![
        Value::Null,
        json!(true),
        json!(0),
        json!(1),
        json!(-1),
        json!(1.5),
        json!(51),
        json!(101),
        json!(65_535),
        json!(65_536),
        json!(1_000_001),
        json!(5_000_000_000_u64),
        json!(""),
        json!("x"),
        json!("a b"),
        json!([]),
        json!({}),
        json!([null]),
        json!(["x"]),
        json!({ "x": "y" }),
        json!({ "x": null }),
    ];
    match there {
        Value::String(text) => {
            values.extend(texts(place).iter().map(|text| json!(text)));
            values.extend([json!("a".repeat(63)), json!("a".repeat(64))]);
            values.extend([json!(text.to_uppercase()), json!(format!("{text} "))]);
        }
        Value::Array(items) => {
            let mut twice = items.clone();
            twice.extend(items.iter().cloned());
            values.push(json!(twice));
        }
        Value::Object(fields) => {
            for key in
                ["-a", "a/b", "A/b", "a//b", "/b", "a/", "a.b/c_d.E", "a b", "unknown", "", "ü"]
            {
                let mut more = fields.clone();
                more.insert(key.to_owned(), json!("v"));
                values.push(json!(more));
            }
            let mut long = fields.clone();
            long.insert(format!("{}/b", "a".repeat(253)), json!("v"));
            values.push(json!(long));
            long.insert(format!("{}/b", "a".repeat(254)), json!("v"));
            values.push(json!(long));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
    values
}

fn texts(place: &str) -> &'static [&'static str] {
    let is = |name: &str| place.contains(name);
    match place {
        _ if is("/timeouts/") || is("/backoff/") || is("/openFor") => DURATIONS,
        _ if is("/paths/") => PATHS,
        _ if is("/methods/") => METHODS,
        _ if is("/clusterRanges/") => RANGES,
        _ if is("/when/") => RETRIED,
        _ => NAMES,
    }
}

const DURATIONS: &[&str] = &[
    "0s",
    "1ms",
    "99ms",
    "100ms",
    "999ms",
    "1s",
    "1000ms",
    "1500ms",
    "1m",
    "60s",
    "61s",
    "1m1s",
    "1h",
    "59m60s",
    "24h",
    "24h1ms",
    "23h60m",
    "25h",
    "99999h",
    "100000s",
    "1d",
    "1.5s",
    "+1s",
    "-1s",
    "1us",
    "1h1m1s1ms",
    "1h1h1h1h",
    "1h1h1h1h1h",
    "1S",
    "s",
    "1 s",
    "00001s",
    "1e3ms",
];

const METHODS: &[&str] =
    &["GET", "get", "M-SEARCH", "A B", "Ä", "X-1!#$%&'*+.^_`|~", "GET,POST", "A\n", "\\"];

const RETRIED: &[&str] =
    &["reset", "5xx", "4xx", "399", "400", "599", "600", "+503", "0503", "gateway-error", "5XX"];

const NAMES: &[&str] = &[
    "web-2",
    "-web",
    "web-",
    "a.b",
    "a..b",
    ".a",
    "a.",
    "a_b",
    "a_b.c-d",
    "a/b",
    "*",
    "-",
    ".",
    "a\n",
    "ä",
    "A",
    "V_1.x",
    "-v",
    "v-",
    "Strict",
    "Permissive",
    "Allow",
    "Deny",
    "AllowAuthenticated",
    "peakEwma",
    "random",
    "roundRobin",
    "leastRequest",
    "PeakEwma",
    "Service",
    "Pods",
];

const PATHS: &[&str] = &[
    "/",
    "/*",
    "/a",
    "/a/",
    "/a/b",
    "/a/*",
    "/a/*/b",
    "/a*",
    "/*a",
    "/**",
    "/a/**",
    "*",
    "a",
    "//",
    "//a",
    "/a//",
    "/a//b",
    "/a//*",
    "//*",
    "/.",
    "/..",
    "/./a",
    "/../a",
    "/a/.",
    "/a/..",
    "/a/./b",
    "/a/../b",
    "/../*",
    "/a/..;x",
    "/a/.;x/b",
    "/a/;x",
    "/a/;.",
    "/...",
    "/a/.b",
    "/a/b.",
    "/a;b=c",
    "/a;..",
    "/a?b",
    "/a#b",
    "/a\\b",
    "/a b",
    "/a\tb",
    "/ä",
    "/%",
    "/a%",
    "/a%2",
    "/a%zz",
    "/a%2z",
    "/a%20",
    "/a%2f",
    "/a%2F",
    "/a%5c",
    "/a%5C",
    "/a%00",
    "/a%41",
    "/a%5a",
    "/a%5b",
    "/a%5f",
    "/a%60",
    "/a%61",
    "/a%7a",
    "/a%7b",
    "/a%7e",
    "/a%7f",
    "/a%2d",
    "/a%2e",
    "/a%2E%2e",
    "/a%2c",
    "/a%30",
    "/a%39",
    "/a%3a",
    "/a%40",
    "/a%4f",
    "/a%4z",
    "/a%%20",
    "/a%25",
    "/a%e2%82%ac",
    "/a\n",
    "/~a!$&'()*+,;=:@",
    "/a|b",
    "/{a}",
    "/a\"b",
    "/a<b>",
    "/a^b`c",
];

const RANGES: &[&str] = &[
    "10.96.0.0/12",
    "10.96.0.1/12",
    "10.0.0.1/32",
    "0.0.0.0/0",
    "::/0",
    "fd00::/8",
    "fd00::1/8",
    "fd00::1/128",
    "10.0.0.0",
    "10.0.0.0/",
    "10.0.0.0/33",
    "10.0.0.0/-1",
    "10.0.0.0/08",
    "10.0.0.0/+8",
    "010.0.0.0/8",
    "10.0.0/8",
    "10.0.0.0/8 ",
    "256.0.0.0/8",
    "::ffff:10.0.0.0/104",
    "::10.0.0.0/104",
    "FD00::/8",
    "fd00:0:0:0:0:0:0:0/8",
    "0000:0000:0000:0000:0000:0000:0000:0000/0",
    "fd00::%eth0/64",
    "fd00::/129",
    "fe80::/10",
    "1.2.3.4/0x8",
    "10.0.0.0/8/8",
];
