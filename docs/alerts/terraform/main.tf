# Mail, or whatever else SNS delivers to, for what byokd announces on EventBridge:
# every key that is rotated, and everything that a person must look at.
#
#   terraform apply -var email=keys@example.com
#
# Apply it in the account and Region of the bus that byokd sends to.

terraform {
  required_providers {
    aws = {
      source = "hashicorp/aws"
    }
  }
}

variable "email" {
  description = "who is told; SNS asks this address to confirm"
  type        = string
}

variable "event_bus_name" {
  description = "the bus of [events] bus in byokd.toml"
  type        = string
  default     = "default"
}

locals {
  rules = {
    byokd-moves = {
      description = "a key was rotated by byokd"
      pattern     = file("${path.module}/../moves.json")
      paths = {
        what       = "$.detail-type"
        group      = "$.detail.group"
        alias      = "$.detail.alias"
        generation = "$.detail.generation"
        key        = "$.resources[0]"
        at         = "$.detail.occurred_at"
      }
      template = "\"byokd: <what>: <alias> of key group <group> is at generation <generation>, <key>, since <at>.\""
    }
    byokd-failures = {
      description = "byokd needs a person"
      pattern     = file("${path.module}/../failures.json")
      paths = {
        what   = "$.detail-type"
        group  = "$.detail.group"
        host   = "$.detail.host"
        detail = "$.detail"
      }
      template = "\"byokd: <what>: key group <group> on <host>.\"\n\"Run: byokctl status <group>\"\n<detail>"
    }
  }
}

resource "aws_sns_topic" "byokd" {
  name = "byokd"
}

resource "aws_sns_topic_subscription" "email" {
  topic_arn = aws_sns_topic.byokd.arn
  protocol  = "email"
  endpoint  = var.email
}

resource "aws_sns_topic_policy" "byokd" {
  arn = aws_sns_topic.byokd.arn
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Service = "events.amazonaws.com" }
      Action    = "sns:Publish"
      Resource  = aws_sns_topic.byokd.arn
      Condition = {
        ArnEquals = { "aws:SourceArn" = [for rule in aws_cloudwatch_event_rule.byokd : rule.arn] }
      }
    }]
  })
}

resource "aws_cloudwatch_event_rule" "byokd" {
  for_each       = local.rules
  name           = each.key
  description    = each.value.description
  event_bus_name = var.event_bus_name
  event_pattern  = each.value.pattern
}

resource "aws_cloudwatch_event_target" "sns" {
  for_each       = local.rules
  rule           = aws_cloudwatch_event_rule.byokd[each.key].name
  event_bus_name = var.event_bus_name
  arn            = aws_sns_topic.byokd.arn

  input_transformer {
    input_paths    = each.value.paths
    input_template = each.value.template
  }
}

output "topic_arn" {
  value = aws_sns_topic.byokd.arn
}
