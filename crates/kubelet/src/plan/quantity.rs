//! Quantities of the Kubernetes API ("500m", "64Mi") as numbers.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// The quantity in thousandths, rounded up; none when it is not one.
pub(crate) fn milli(quantity: &Quantity) -> Option<i64> {
    let text = quantity.0.trim();
    let split = text
        .find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '-' || c == '+'))
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let number: f64 = number.parse().ok()?;
    let factor: f64 = match suffix {
        "n" => 1e-9,
        "u" => 1e-6,
        "m" => 1e-3,
        "" => 1.0,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "E" => 1e18,
        "Ki" => 1024.0,
        "Mi" => 1_048_576.0,
        "Gi" => 1_073_741_824.0,
        "Ti" => 1_099_511_627_776.0,
        "Pi" => 1_125_899_906_842_624.0,
        "Ei" => 1_152_921_504_606_846_976.0,
        exponent => {
            let power: i32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            10f64.powi(power)
        }
    };
    let value = (number * factor * 1000.0).ceil();
    // Saturates: nobody has more.
    #[allow(clippy::cast_possible_truncation)]
    value.is_finite().then_some(value as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("500m", Some(500))]
    #[case("2", Some(2000))]
    #[case("1.5", Some(1500))]
    #[case("64Mi", Some(67_108_864_000))]
    #[case("1k", Some(1_000_000))]
    #[case("1e3", Some(1_000_000))]
    #[case("1n", Some(1))]
    #[case("much", None)]
    #[case("", None)]
    fn quantities_are_read_in_thousandths(#[case] text: &str, #[case] milli_units: Option<i64>) {
        assert_eq!(milli(&Quantity(text.into())), milli_units);
    }
}
