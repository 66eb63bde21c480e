# The name of a Job of a CronJob ends with the minutes from 1970 to its tick. One that was made by hand has no tick.
minutes=${JOB_NAME##*-}
case $minutes in
    '' | *[!0-9]*) exec asyrp jobs run "$0" ;;
    *) exec asyrp jobs run "$0" --tick "$(date --utc --date "@$((minutes * 60))" +%FT%TZ)" ;;
esac
